import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert import convert
from maskkit.data.convert.cityscapes import known
from maskkit.errors import DataError
from tests.data.formats.samples import SAMPLES, SIZE
from tests.data.written import areas, image_row, messages, object_row, write_coco, write_image, write_json


def write_city(root: Path, values: np.ndarray, kinds: tuple[str, ...] = ("labelIds", "instanceIds")) -> Path:
    """One image with the labels of the values of ``instanceIds``."""
    write_image(root / "leftImg8bit" / "val" / "ulm" / "ulm_1_leftImg8bit.png", 1, values.shape)  # type: ignore[arg-type]
    folder = root / "gtFine" / "val" / "ulm"
    folder.mkdir(parents=True)
    labels = np.where(values >= 1000, values // 1000, values)
    for kind, content in (("labelIds", labels.astype(np.uint8)), ("instanceIds", values.astype(np.uint16))):
        if kind in kinds:
            Image.fromarray(content).save(folder / f"ulm_1_gtFine_{kind}.png")
    return root


def values() -> np.ndarray:
    """Road, two cars, a group of persons, a caravan, which is not evaluated, and unlabelled pixels."""
    found = np.full((20, 30), 7)
    found[:2] = 0
    found[4:8, 4:8], found[4:8, 20:26], found[10:12, 2:9], found[15:19, 3:9] = 26000, 26001, 24, 29000
    return found


def test_official_classes(tmp_path: Path) -> None:
    write_city(tmp_path, values())
    assert find_splits(tmp_path) == ["val"]
    dataset = open_dataset(tmp_path)
    assert dataset.problems == []
    assert (len(dataset.categories), sum(dataset.categories.things)) == (19, 8)
    assert dataset.categories.ids[:3] == (7, 8, 11)
    names = dataset.categories.names
    found = [(names[a.label], a.crowd) for a in dataset.records[0].annotations]
    assert found == [("person", True), ("car", False), ("car", False)]
    assert [a.rle((20, 30)) is not None for a in dataset.records[0].annotations] == [True] * 3
    assert len(dataset.as_instances().categories) == 8
    semantic = dataset.as_semantic()
    assert semantic.categories.names == known.CITYSCAPES.names  # nothing is background
    counts = semantic.records[0].semantic.counts((20, 30))  # type: ignore[union-attr]
    assert {semantic.categories.names[n] if n < 255 else "": c for n, c in counts.items()} == {
        "": 60 + 24, "road": 600 - 60 - 16 - 24 - 14 - 24, "person": 14, "car": 40
    }  # fmt: skip


def test_written_with_its_values(tmp_path: Path) -> None:
    write_city(tmp_path / "src", values())
    counts = convert(tmp_path / "src", tmp_path / "coco", "coco")
    convert(tmp_path / "src", tmp_path / "out", "cityscapes")
    assert counts["objects"] == 3
    place = Path("val/images/ulm_1_leftImg8bit_gtFine_instanceIds.png")
    again = np.asarray(Image.open(tmp_path / "out" / "gtFine" / place))
    before = values()
    before[before == 29000] = 0
    assert np.array_equal(again, before)
    assert not (tmp_path / "out" / "classes.json").exists()


def test_polygons_alone(tmp_path: Path) -> None:
    SAMPLES["cityscapes"](tmp_path)
    dataset = open_dataset(tmp_path, "val")
    cat, dog, group = dataset.records[0].annotations
    assert [a.crowd for a in (cat, dog, group)] == [False, False, True]
    sizes = [int(a.rle(SIZE) is not None) for a in (cat, dog, group)]
    assert sizes == [1, 1, 1]
    assert "no labelIds.png" in messages(dataset.problems, "warning")[0]


def test_polygons_of_another_size_and_deleted_ones(tmp_path: Path) -> None:
    SAMPLES["cityscapes"](tmp_path)
    (file,) = (tmp_path / "gtFine/val").rglob("*_polygons.json")
    content = json.loads(file.read_text())
    content["objects"][1]["deleted"] = 1
    write_json(file, content)
    assert len(open_dataset(tmp_path, "val").records[0].annotations) == 2
    write_json(file, content | {"imgHeight": 24, "imgWidth": 32})
    dataset = open_dataset(tmp_path, "val")
    assert len(dataset) == 0
    assert "the annotations say 32 x 24 pixels, the image has 16 x 12" in messages(dataset.problems, "error")[0]


@pytest.mark.parametrize("names", [("car", "road"), ("cat", "road")])
def test_values_of_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    categories = [{"id": 3, "name": names[0]}, {"id": 7, "name": names[1], "isthing": 0}]
    rows = [object_row(1), object_row(2, category_id=7, segmentation=[[0, 0, 60, 0, 60, 9, 0, 9]], bbox=None)]
    file = write_coco(tmp_path / "a.json", rows, [image_row(1)], categories)
    counts = convert(file, tmp_path / "out", "cityscapes")
    assert counts["objects"] == 1
    official = names[0] == "car"
    assert (tmp_path / "out" / "classes.json").exists() != official
    assert counts.get("images whose background became unknown", 0) == official
    dataset = open_dataset(tmp_path / "out")
    assert dataset.problems == []
    assert set(names) <= set(dataset.categories.names)
    assert areas(dataset.as_instances().records[0].annotations) == [400]


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    odd = values()
    odd[0, 0] = 50000
    write_city(tmp_path, odd, ("instanceIds",))
    assert "its class 50 is not known" in messages(open_dataset(tmp_path).problems, "error")[0]
    write_image(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_2_leftImg8bit.png")
    assert "no ulm_2_gtFine_labelIds.png" in messages(open_dataset(tmp_path).problems, "error")[1]
    with pytest.raises(DataError, match="has no train split"):
        open_dataset(tmp_path, "train")
    many = [{"id": i, "name": f"c{i}"} for i in range(1, 66)]
    file = write_coco(tmp_path / "b" / "a.json", [object_row(1)], categories=many)
    with pytest.raises(DataError, match="at most 64 classes"):
        convert(file, tmp_path / "out", "cityscapes")
    write_json(tmp_path / "classes.json", {"classes": []})
    with pytest.raises(DataError, match=r"classes\.json"):
        open_dataset(tmp_path)


def test_label_maps_without_objects_beside_others_are_said(tmp_path: Path) -> None:
    SAMPLES["cityscapes"](tmp_path)
    before = open_dataset(tmp_path)
    assert not any("labelIds.png alone" in p.message for p in before.problems)
    first = next((tmp_path / "gtFine").rglob("*_labelIds.png"))
    for end in ("instanceIds.png", "polygons.json"):
        first.with_name(first.name.replace("labelIds.png", end)).unlink(missing_ok=True)
    assert any("1 image with labelIds.png alone" in p.message for p in open_dataset(tmp_path).problems)


def test_a_class_of_polygons_that_nobody_knows_is_named(tmp_path: Path) -> None:
    SAMPLES["cityscapes"](tmp_path)
    file = next(f for f in sorted((tmp_path / "gtFine").rglob("*polygons.json")) if "c_gtFine" in f.name)
    file.write_text(file.read_text().replace('"cat"', '"carr"').replace('"dog"', '"parking"'))
    found = messages(open_dataset(tmp_path).problems, "error")
    assert any("its class 'carr' is not known" in message for message in found)
    assert not any("parking" in message for message in found), "one of Cityscapes' own that is not evaluated"
