"""Small inputs that showed faults, run as a user runs them, with the right value of each.

They lie in a folder beside the checkout, ``cases`` of the shared data; without it these tests are skipped. The same
kinds with other inputs are tests of the packages, and do not need the folder.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskkit
from maskkit import cli
from maskkit.data import images, open_dataset, open_splits
from maskkit.data.images import image_size, read_image
from maskkit.errors import MaskkitError
from maskkit.geometry import rle as mask_math
from tests.fuzz import bounded
from tests.small import PRESET, save_small

ROOT = Path(__file__).parents[1]
CASES = ROOT.parent / "shared" / "cases"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not beside the checkout"),
    pytest.mark.usefixtures("without_figures"),
]

TINY = ["--input.size", "64", "64", "--model.width", "16", "--weights", "random"]
SHORT = ["--train.steps", "2", "--train.batch", "2", "--train.workers", "0", "--train.warmup", "1"]
ESCAPES = {chr(i) for i in (*range(9), *range(11, 32), 127, *range(128, 160))} - {"\r"}


@dataclass
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def all(self) -> str:
        """Both streams, on one line."""
        return " ".join(f"{self.out}\n{self.err}".split())

    def failed(self, *words: str) -> None:
        """It ended by itself with one line that has the ``words``."""
        lines = [line for line in self.err.splitlines() if line.startswith("maskkit: ")]
        assert self.code == 1, self.all
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.all
        for word in words:
            assert word in lines[0]


@pytest.fixture
def user(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process."""

    def run(*args: object) -> Said:
        capsys.readouterr()
        code = cli.main([str(a) for a in args])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def case(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a case, to which may be written."""

    def copy(name: str) -> Path:
        source, target = CASES / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return copy


def process(*args: object, prefix: tuple[str, ...] = (), timeout: float = 300) -> Said:
    """A command in a process of its own."""
    path = os.pathsep.join([str(Path(maskkit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "maskkit", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    return Said(done.returncode, done.stdout, done.stderr)


def measured(user: Callable[..., Said], folder: Path) -> dict[str, Any]:
    """The metrics of the results file of a case."""
    out = folder.parent / "out"
    data = folder / "annotations.json"
    said = user("eval", "--predictions", folder / "results.json", "--data", data, "--out", out)
    assert said.code == 0, said.all
    return json.loads((out / "metrics.json").read_text())


def ap(metrics: dict[str, Any]) -> float:
    """Mask AP where masks were measured, else box AP."""
    return (metrics["segm"] or metrics["bbox"])["AP"]


def counts(path: Path, split: str | None = None) -> dict[str, int]:
    """Objects of every image, by the name of its file."""
    return {r.path.name: len(r.annotations) for r in open_dataset(path, split).records}


# ground truth and results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("eval_image_ids_snowflake", 0.0),
        ("eval_category_ids_over_2e53", 0.0),
        ("eval_image_ids_negative_masks", 1.0),
        ("eval_boxes_over_the_border", 1.0),
        ("eval_degenerate_truth", 0.505),
        ("eval_pictures_not_there", 1.0),
        ("eval_ann_ids_zero", 1.0),
        ("eval_text_ids", 1.0),
    ],
)
def test_ap(name: str, right: float, case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    assert ap(measured(user, case(name))) == pytest.approx(right, abs=5e-4)


def test_ids_of_the_file_come_back(case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path) -> None:
    """A model's results for a file with text ids name its images as the file does, and can be measured with it."""
    folder, model = case("eval_text_ids"), save_small(tmp_path / "model.safetensors", ("c1", "c2"))
    out = tmp_path / "found"
    assert user("eval", "--model", model, "--data", folder / "annotations.json", "--out", out).code == 0
    rows = json.loads((out / "predictions.json").read_text())
    assert rows
    assert {row["image_id"] for row in rows} <= {"fr_a", "fr_b"}
    again = ["eval", "--predictions", out / "predictions.json", "--data", folder / "annotations.json"]
    assert user(*again, "--out", tmp_path / "again").code == 0
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (out, tmp_path / "again"))
    assert ap(first) == pytest.approx(ap(second))


def test_results_without_a_row(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    assert ap(measured(user, case("eval_no_results"))) == 0


def test_results_whose_counts_are_too_large(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("eval_results_counts_too_large")
    said = user("eval", "--predictions", folder / "results.json", "--data", folder, "--out", folder / "out")
    said.failed("results.json, row 1")


def test_classes_that_differ_in_case(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    found = []
    for name in ("classes_differ_in_case", "classes_differ_control"):
        folder = case(name)
        options = ["--train.steps", "30", "--train.workers", "0", "--train.eval-every", "0"]
        said = user("train", "--model", "tinynet", "--data", folder, "--out", folder / "run", *options)
        assert said.code == 0, said.all
        model = folder / "run" / "best.safetensors"
        assert user("eval", "--model", model, "--data", folder, "--out", folder / "eval").code == 0
        metrics = json.loads((folder / "eval" / "metrics.json").read_text())
        assert len(metrics["per_class"]) == 2
        found.append(metrics["bbox"]["AP"])
    assert found[0] == pytest.approx(found[1])
    assert found[0] > 0.1, "they have learnt something"


def test_two_classes_of_one_name(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_duplicate_names_two_splits")
    train, val = open_splits(folder)
    labels = [[a.label for r in part.records for a in r.annotations] for part in (train, val)]
    assert labels == [[0, 1], [0, 1]]


# label maps ------------------------------------------------------------------------------------------------------


def test_plain_voc(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("voc_segmentation_plain")
    said = user("check", folder)
    assert said.code == 0, said.all
    assert sum(counts(folder).values()) == 6
    assert len(counts(folder)) == 3
    for preset, options in ((PRESET, TINY), ("tinynet", [])):
        out = folder.parent / preset
        said = user("train", "--model", preset, "--data", folder, "--out", out, *options, *SHORT)
        assert said.code == 0, said.all
    widths = ["--model.widths", "8", "8", "8", "8", "--weights", "random", "--input.size", "48", "64"]
    said = user(
        "train", "--model", "refinenet-mobilenetv2-320", "--data", folder, "--out", folder / "r", *widths, *SHORT
    )
    assert said.code == 0, said.all


def test_binary_masks(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("png_binary_0_255")
    said = user("check", folder)
    assert said.code == 1, said.all
    assert "255" in said.all
    assert "classes.txt" in said.all or "classes.json" in said.all, "the remedy is named"
    widths = ["--model.widths", "8", "8", "8", "8", "--weights", "random"]
    said = user(
        "train", "--model", "refinenet-mobilenetv2-320", "--data", folder, "--out", folder / "r", *widths, *SHORT
    )
    said.failed("255")
    assert not (folder / "r" / "best.safetensors").exists()


@pytest.mark.parametrize("name", ["png_label_maps", "tags_table"])
def test_labels_that_coco_cannot_hold(name: str, case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case(name)
    said = user("convert", folder, folder / "coco", "--to", "coco")
    if said.code:
        said.failed()
        assert not (folder / "coco").exists()
        return
    content = [json.loads(f.read_text()) for f in (folder / "coco").rglob("*.json")]
    objects = sum(len(part["annotations"]) for part in content)
    left_out = [int(word) for word in said.all.replace(",", " ").split() if word.isdigit()]
    assert objects >= 3 or any(n > 0 for n in left_out[2:]), said.all
    assert "0 objects, 0 problems" not in said.all


def test_16_bit_labels(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    said = user("check", case("png_16bit_ids"))
    assert said.code == 1
    assert "masks/a0.png" in said.all or "masks/a1.png" in said.all
    assert "1000" in said.all or "16" in said.all


def test_a_truncated_label_image(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("png_truncated_label")
    said = user("check", folder)
    assert said.code == 1
    errors = [line for line in said.out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said.out
    assert "masks/" in errors[0]
    assert "3 images" in said.all or "2 images" in said.all or "images │ 2" in said.all or "images │ 3" in said.all


def test_panoptic_text_ids(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("pan_text_segment_ids")
    said = user("convert", folder, folder / "coco", "--to", "coco-panoptic")
    if said.code:
        return said.failed()
    segments = [a for f in (folder / "coco").rglob("*.json") for a in json.loads(f.read_text())["annotations"]]
    assert sum(len(a["segments_info"]) for a in segments) == 2 or "1 problem" in said.all, said.all
    return None


# images and their files ------------------------------------------------------------------------------------------


def test_a_size_that_contradicts_its_image(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_exif_raw_size")
    said = user("convert", folder, folder / "yolo", "--to", "yolo")
    assert not [f for f in (folder / "yolo").rglob("*.txt") if f.read_text().strip()], "no distorted label"
    assert said.code == 1 or "1 problem" in said.all, said.all


def test_a_size_with_sides_swapped(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    said = user("check", case("coco_exif_upright_but_size_swapped"))
    assert said.code == 1
    assert "phone.jpg" in said.all
    assert "64 x 48" in said.all


def test_orientation_of_tiff(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("yolo_tiff_orientation")
    said = user("check", folder)
    assert said.code == 0, said.all
    assert user("convert", folder, folder / "coco", "--to", "coco").code == 0
    content = [json.loads(f.read_text()) for f in (folder / "coco").rglob("*.json")]
    rows = {Path(i["file_name"]).stem: i for part in content for i in part["images"]}
    for name in ("scan6", "scan8"):
        assert (rows[name]["width"], rows[name]["height"]) == (48, 64)
        boxes = [a["bbox"] for p in content for a in p["annotations"] if a["image_id"] == rows[name]["id"]]
        np.testing.assert_allclose(boxes, [[19.2, 19.2, 9.6, 25.6]], atol=0.01)


def test_size_in_the_xml(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    said = user("check", case("voc_size_mismatch"))
    assert said.code == 1
    assert "128 x 96" in said.all
    assert "64 x 48" in said.all


def test_text_ids(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_text_ids_merged")
    assert user("check", folder).code == 0
    boxes = {r.path.name: [a.box for a in r.annotations] for r in open_dataset(folder).records}
    assert boxes == {"12_3.png": [(2, 5, 17, 25)], "1_23.png": [(40, 5, 55, 25)]}


def test_two_records_on_one_file(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_two_records_one_file")
    said = user("check", folder)
    assert said.code == 1, said.all
    assert "frame000066.png" in said.all
    said = user("convert", folder, folder / "yolo", "--to", "yolo")
    labels = [f.read_text().splitlines() for f in (folder / "yolo").rglob("labels/**/*.txt")]
    assert sum(map(len, labels)) <= 1, "no object of one image on the other"
    assert said.code == 1 or "problem" in said.all


def test_a_suffix_that_is_rare(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("yolo_jfif_left_out")
    said = user("check", folder)
    assert counts(folder) == {"a.jpg": 1, "b.jfif": 1, "c.avif": 1} or ("b.jfif" in said.all and "c.avif" in said.all)


def test_ten_names_there_and_back(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_other_endings")
    assert user("check", folder).code == 0
    assert user("convert", folder, folder / "yolo", "--to", "yolo").code == 0
    assert sum(counts(folder / "yolo").values()) == 10
    assert user("convert", folder / "yolo", folder / "coco", "--to", "coco").code == 0
    assert sum(counts(folder / "coco").values()) == 10
    assert len(counts(folder / "coco")) == 10


@pytest.mark.parametrize("name", ["grey200.tif", "camera12bit.tif"])
def test_small_values_in_many_bits(
    name: str, case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_warned", [])  # once in a process
    path, model = case("tiff_int32_small_values") / name, save_small(tmp_path / "model.safetensors")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        said = user("predict", path, "--model", model, "--out", tmp_path / "out")
    text = said.all + " ".join(str(w.message) for w in warned)
    drawn = list((tmp_path / "out").rglob("*.jpg"))
    if said.code:
        return said.failed(name)
    assert len(drawn) == 1
    with Image.open(drawn[0]) as image:
        assert np.asarray(image).mean() > 20 or "bit" in text or "scale" in text
    return None


ODD_REFUSED = {
    "band4_planar.tif",
    "band5.tif",
    "bomb.png",
    "empty.jpg",
    "f32.tif",
    "f64.tif",
    "html.png",
    "i16_signed.tif",
    "pixels90M.png",
    "text.jpg",
    "trunc.jpg",
    "trunc.png",
}
"""May be refused, each by one error that names the file; the others are read."""

ODD_TURNED = {f"exif{n}.jpg" for n in (5, 6, 7, 8)} | {f"exif6.{kind}" for kind in ("png", "tif", "webp")}
ODD_SIZES = {
    "odd33x31.png": (31, 33),
    "pano.jpg": (20, 5000),
    "t1x1.png": (1, 1),
    "t1x200.png": (200, 1),
    "t2.png": (2, 2),
    "t300x1.png": (1, 300),
    "x.ico": (43, 64),
} | dict.fromkeys(ODD_TURNED, (120, 80))
ODD_COLOURS = {"grey.jpg", "i16.png", "i16_12bit.tif", "i16_big.tif", "i32.tif", "i8.tif", "l_tr.png", "la.png"}
ODD_COLOURS |= {"one.png", "x.pgm", "pal.png", "pal_tr.png", "pal_trb.png"}


def refused(path: Path) -> str | None:
    """Why an image is refused, if it is."""
    try:
        read_image(path)
    except MaskkitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", sorted((CASES / "odd_pictures").glob("*")), ids=lambda p: p.name)
def test_odd_images(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if path.name in ODD_REFUSED and (refusal := refused(path)):
            assert path.name in refusal
            return
        image = read_image(path)
    height, width = image.shape[1:]
    assert (height, width) == ODD_SIZES.get(path.name, (80, 120))
    assert image_size(path) == (height, width)
    assert image.max() > 100 or path.name == "i16_12bit.tif", "not black; of 12 bits a warning speaks"
    if path.name not in ODD_SIZES and path.name not in ODD_COLOURS and path.name not in ODD_REFUSED:
        with Image.open(CASES / "odd_pictures" / "base.png") as base:
            truth = np.asarray(base.convert("RGB")).transpose(2, 0, 1).astype(int)
        turns = {"exif2.jpg": truth[:, :, ::-1], "exif3.jpg": truth[:, ::-1, ::-1], "exif4.jpg": truth[:, ::-1]}
        assert np.abs(turns.get(path.name, truth) - image.numpy()).mean() < 12


def test_a_folder_of_odd_images(user: Callable[..., Said], case: Callable[[str], Path], tmp_path: Path) -> None:
    """predict draws what can be read and lists the rest, one line each."""
    folder, model = case("odd_pictures"), save_small(tmp_path / "model.safetensors")
    for name in ("pano.jpg",):  # large for a test
        (folder / name).unlink()
    said = user("predict", folder, "--model", model, "--out", tmp_path / "out")
    assert said.code == 1
    assert "Traceback" not in said.all
    for name in ("trunc.jpg", "trunc.png", "empty.jpg", "html.png", "text.jpg", "bomb.png"):
        assert sum(f"/{name}:" in line for line in said.err.splitlines()) == 1, name
    assert len(list((tmp_path / "out" / "overlays").iterdir())) >= 55


# readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["voc_xml_gb2312", "voc_names_with_spaces"])
def test_voc(name: str, case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case(name)
    said = user("check", folder)
    if name == "voc_names_with_spaces":
        assert said.code == 0, said.all
        assert counts(folder) == {"left gate 1.jpg": 1, "left gate 2.jpg": 1}
    else:
        read = said.code == 0 and counts(folder) == {"p.jpg": 1}
        errors = [line for line in said.out.splitlines() if line.startswith("error: ")]
        assert read or (said.code == 1 and len(errors) == 1 and "p.xml" in errors[0]), said.all


def test_an_empty_polygon_keeps_the_box(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("coco_empty_polygon_list")
    assert user("check", folder).code == 0
    boxes = [(a.box, a.segmentation) for a in open_dataset(folder).records[0].annotations]
    assert boxes[0] == ((5, 5, 25, 25), None)


def test_labelme_mask(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("labelme_mask_shape")
    assert user("check", folder).code == 0
    record = open_dataset(folder).records[0]
    rle = record.annotations[0].rle(record.size)
    assert rle is not None
    mask = mask_math.decode([rle], record.size)[0]
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (5, 5, 25, 25)


def test_labelme_group_without_a_name(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("labelme_group_id_empty_text")
    assert user("check", folder).code == 0
    shapes = json.loads((folder / "a.json").read_text())["shapes"]
    assert counts(folder) == {"a.png": len(shapes)}


def test_labelme_with_an_image_called_test(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("labelme_picture_called_test")
    said = user("check", folder)
    assert said.code == 0, said.all
    assert sorted(counts(folder)) == ["car.png", "test.png"]
    assert all(counts(folder).values())


def test_yolo_label_with_a_bom(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("yolo_label_with_bom")
    assert user("check", folder).code == 0
    lines = (folder / "labels" / "train" / "a.txt").read_text(encoding="utf-8-sig").split("\n")
    assert counts(folder) == {"a.png": sum(map(bool, lines))}


def test_a_box_that_contradicts_its_mask(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    said = user("check", case("coco_box_contradicts_mask"))
    assert said.code == 0
    assert "0 warnings" not in said.all
    assert "warning: " in said.all


VARIANTS_READ: dict[int, tuple[tuple[float, float, float, float], int | None]] = {
    0: ((5, 5, 25, 25), None),
    1: ((5, 5, 25, 25), None),
    4: ((5, 5, 25, 25), 190),
    7: ((5, 5, 25, 25), 190),
    9: ((0, 10, 1, 30), 20),
    10: ((0, 10, 1, 30), 20),
    11: ((0, 10, 1, 30), 20),
    13: ((0, 10, 1, 30), 20),
    17: ((5, 5, 25, 25), None),
    20: ((5, 5, 25, 25), 484),
    21: ((5, 5, 25, 25), 970),
    23: ((5, 5, 25, 25), 190),
    26: ((0, 0, 64, 48), None),
    28: ((5, 5, 25, 25), None),
    33: ((5, 5, 25, 25), 190),
    34: ((5, 5, 25, 25), 190),
    35: ((5, 5, 25, 25), 190),
    36: ((5, 5, 25, 25), 190),
    40: ((5, 5, 25, 25), 190),
}
"""Box and pixels (None: no mask) of the variants of one annotation that can be read. The others are refused."""


@pytest.mark.parametrize("number", range(49))
def test_variants_of_a_segmentation(number: int, case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case(f"coco_segmentation_variants/{number:02}")
    said = user("check", folder)
    data = open_dataset(folder)
    assert len(data) == 1
    objects = data.records[0].annotations
    assert said.code == int(not objects), said.all
    if number not in VARIANTS_READ:
        assert not objects
        assert sum(p.level == "error" for p in data.problems) == 1
        return
    box, pixels = VARIANTS_READ[number]
    assert objects[0].box == pytest.approx(box)
    rle = objects[0].rle((48, 64))
    assert (None if rle is None else int(mask_math.area([rle])[0])) == pixels
    assert objects[0].crowd == (number == 36)


# training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_on_a_full_disk(case: Callable[[str], Path], tmp_path: Path) -> None:
    folder, disk = case("train_four"), tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=3m none "{disk}" || exit 99; "$@"; code=$?; find "{disk}" -type f; exit $code'
    args = ["train", "--model", PRESET, "--data", folder, "--out", disk / "run", "--weights", "random"]
    said = process(*args, *SHORT, prefix=("unshare", "-m", "-r", "sh", "-c", script, "sh"))
    if said.code == 99 or "unshare" in said.err:
        pytest.skip("this machine lets nobody mount a small disk")
    said.failed(".safetensors", "space")
    assert str(disk) in said.err
    left = [line for line in said.out.splitlines() if line.startswith(str(disk))]
    assert not [name for name in left if name.endswith((".safetensors", ".tmp")) or ".tmp" in name], left


def test_the_batch_does_not_change_results(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("batch_changes_results")
    shorter = ["--input.resize", "shorter", "--input.size", "64", "128", "--model.width", "16", "--weights", "random"]
    options = ["--train.steps", "4", "--train.batch", "3", "--train.workers", "0", "--data.val", folder]
    said = user("train", "--model", PRESET, "--data", folder, "--out", folder / "run", *shorter, *options)
    assert said.code == 0, said.all
    found = []
    for batch in (1, 2, 3):
        out = folder / f"eval{batch}"
        model = folder / "run" / "best.safetensors"
        assert user("eval", "--model", model, "--data", folder, "--batch", batch, "--out", out).code == 0
        rows = json.loads((out / "predictions.json").read_text())
        assert rows
        found.append((sorted(map(str, rows)), json.loads((out / "metrics.json").read_text())))
    assert found[0] == found[1] == found[2]
    metrics = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["val/box_AP"] == pytest.approx(found[0][1]["bbox"]["AP"], abs=1e-3)


def test_panoptic_training_of_objects(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    """What cannot be measured is said before the first step."""
    folder = case("hard_training_set")
    said = user("train", "--model", "tinysegments", "--data", folder, "--out", folder / "run", *SHORT)
    if said.code:
        said.failed()
        assert not (folder / "run" / "metrics.jsonl").exists() or not (folder / "run" / "metrics.jsonl").read_text()
        assert not list((folder / "run").glob("*.safetensors"))
    else:
        assert (folder / "run" / "report.html").is_file()


# hostile ---------------------------------------------------------------------------------------------------------


def write_images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def test_nothing_is_copied_from_outside(case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b" / "data"
    write_images(inside, "ok.png")
    write_images(tmp_path / "a" / "secret", "private.png")
    (tmp_path / "a" / "secret" / "id_rsa").write_text("a key")
    shutil.copy(case("hostile/coco_traversal.json"), inside / "annotations.json")
    for verb in (["check", inside], ["convert", inside, tmp_path / "out", "--to", "coco"]):
        said = user(*verb)
        assert "Traceback" not in said.all
        assert said.code == 1 or "3 problem" in said.all, said.all
    copied = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".json")
    assert copied in ([], ["ok.png"])


def test_no_escape_sequence_reaches_the_terminal(
    case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    write_images(folder, "p1.png")
    shutil.copy(case("hostile/coco_escape_sequences.json"), folder / "annotations.json")
    write_images(folder, "no\x1b[31mfile.png")
    model = save_small(
        tmp_path / "m.safetensors", ("\x1b[2J\x1b]0;PWN\x07cat\x1b]8;;http://evil\x07x\x1b]8;;\x07", "b")
    )
    for verb in (
        ["check", folder],
        ["check", folder, "--out", tmp_path / "samples"],
        ["convert", folder, tmp_path / "coco", "--to", "coco"],
        ["eval", "--model", model, "--data", folder, "--out", tmp_path / "eval"],
        ["predict", folder / "no\x1b[31mfile.png", "--model", model, "--out", tmp_path / "p"],
        ["predict", folder / "no\x1b[31mother.png", "--model", model, "--out", tmp_path / "q"],
    ):
        said = user(*verb)
        assert "Traceback" not in said.all
        assert not ESCAPES & set(said.out + said.err), verb[0]


def test_a_lone_surrogate_ends_in_a_report(
    case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    write_images(folder, "p1.png", "p2.png")
    shutil.copy(case("hostile/coco_lone_surrogate.json"), folder / "annotations.json")
    assert user("check", folder).code == 0
    out = tmp_path / "run"
    said = user("train", "--model", "tinynet", "--data", folder, "--out", out, *SHORT)
    if said.code:  # refused before the first step, with the class named
        said.failed("cat")
        assert not list(out.glob("*.safetensors"))
        return
    assert (out / "report.html").is_file()
    said = user("eval", "--model", out / "best.safetensors", "--data", folder, "--out", tmp_path / "eval")
    assert said.code == 0, said.all
    assert (tmp_path / "eval" / "report.html").is_file()


def test_no_other_program_is_run(
    case: Callable[[str], Path], tmp_path: Path, user: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would give a PostScript file to Ghostscript, whatever its name."""
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(case("hostile/eps_named_cat.png"), folder / "cat.png")
    write_images(folder, "good.png")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f'#!/bin/sh\ntouch "{tmp_path}/was_run"\nexit 1\n')
    (programs / "gs").chmod(0o755)
    model = save_small(tmp_path / "m.safetensors")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    said = user("predict", folder, "--model", model, "--out", tmp_path / "out")
    assert said.code == 1
    assert "cat.png" in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "was_run").exists()


def test_a_name_in_another_encoding_is_one_bad_record(
    case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path
) -> None:
    folder = tmp_path / "voc"
    write_images(folder / "JPEGImages", "p.jpg", "q.jpg")
    (folder / "Annotations").mkdir()
    xml = "<annotation><object><name>dog</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>20</xmax><ymax>20</ymax>"
    (folder / "Annotations" / "q.xml").write_text(xml + "</bndbox></object></annotation>")
    shutil.copy(case("hostile/voc_gb2312.xml"), folder / "Annotations" / "p.xml")
    said = user("check", folder)
    assert "Traceback" not in said.all
    errors = [line for line in said.out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 or said.code == 0
    assert counts(folder)["q.jpg"] == 1
    said = user("convert", folder, tmp_path / "coco", "--to", "coco")
    assert said.code == 0 or len(said.err.splitlines()) == 1


def test_voc_with_classes_of_its_own(case: Callable[[str], Path], user: Callable[..., Said]) -> None:
    folder = case("hostile/voc_with_SegmentationClass")
    said = user("check", folder)
    assert said.code == 0, said.all
    for preset, options in (("tinynet", []), (PRESET, TINY)):
        said = user("train", "--model", preset, "--data", folder, "--out", folder / preset, *options, *SHORT)
        assert "Traceback" not in said.all
        if said.code:
            said.failed()


def test_a_bomb_of_anchors(case: Callable[[str], Path], user: Callable[..., Said], tmp_path: Path) -> None:
    """Within a second and 200 MB beyond what the program itself takes."""
    folder = tmp_path / "yolo"
    write_images(folder / "images" / "train", "a.png")
    shutil.copy(case("hostile/yolo_anchor_bomb.yaml"), folder / "data.yaml")
    write_images(folder / "images" / "val", "b.png")
    for target in (folder, folder / "data.yaml"):
        with bounded(seconds=1, megabytes=200):
            said = user("check", target)
        assert said.code == 1
        assert "data.yaml" in said.all
        assert "MemoryError" not in said.all
        assert len(said.all) < 2000
