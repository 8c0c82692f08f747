"""From image tags to a semantic model, through the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit import zoo
from maskkit.api import create_model
from maskkit.cli import main
from maskkit.config import InputConfig, PseudoMasks
from maskkit.data import open_dataset
from maskkit.data.loader import normalise
from maskkit.data.saliency import read
from maskkit.data.shapes import shapes_dataset
from maskkit.decode.outputs import TagMaps
from maskkit.decode.tags import rival_scores
from maskkit.errors import DataError
from maskkit.infer.pseudo_labels import label_map, localise
from maskkit.infer.saliency import foreground, write_saliency
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction
from tests.small import save_small

SIZE = (48, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images beside label images, and saliency maps beside both."""
    root = tmp_path_factory.mktemp("drawn")
    data = shapes_dataset(5, 1, SIZE).as_semantic()
    for kind in ("images", "masks", "saliency"):
        (root / kind).mkdir()
    for i in range(len(data)):
        image, target, _ = data.load(i)
        assert target.semantic is not None
        labels = target.semantic.numpy()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "masks" / f"{i}.png")
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(root / "saliency" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(data.categories.names))
    return root


def test_tags_to_masks_to_a_semantic_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    short = ["--input.size", "48", "64", "--train.steps", "2", "--train.batch", "2", "--train.workers", "0"]
    train = ["train", "--model", "eps-mobilenetv2-256", "--data", str(folder), "--out", str(run), *short]
    assert main(train) == 1
    assert "--labels tags" in capsys.readouterr().err
    assert main([*train, "--labels", "tags"]) == 1
    assert "--data.saliency FOLDER" in capsys.readouterr().err
    assert main([*train, "--labels", "tags", "--data.saliency", str(folder / "saliency")]) == 0
    assert "mIoU" in capsys.readouterr().out

    best = str(run / "best.safetensors")
    make = ["pseudo-masks", "--data", str(folder), "--model", best, "--out", str(out), "--tta.scales", "1"]
    assert main(make) == 0
    assert "boundary" in capsys.readouterr().out, "the masks are measured where the truth is known"
    assert 0 <= json.loads((out / "metrics.json").read_text())["semantic"]["mIoU"] <= 1
    labels = tmp_path / "labels"
    assert main(["prelabel", str(folder), "--from", "tags", "--model", best, "--to", "coco", "--out", str(labels)]) == 0
    proposed = open_dataset(labels)
    assert len(proposed) == 5
    assert "background" not in proposed.categories.names
    made, given = open_dataset(out, "train"), open_dataset(folder)
    assert made.categories.names == given.categories.names
    for i in range(len(made)):
        found, tags = made.load(i)[1].semantic, given.load(i, "tags")[1].tags
        assert found is not None
        assert tags is not None
        assert tags[found.unique().long()].all(), "only classes that the image is tagged with"
    assert main(make) == 1
    assert "already" in capsys.readouterr().err

    last = ["train", "--model", "refinenet-mobilenetv2-320", "--data", str(out), "--out", str(tmp_path / "final")]
    assert main([*last, "--data.val", str(folder), "--model.widths", "8", "8", "8", "8", *short]) == 0


def test_the_whole_way_by_one_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saliency is what another model finds."""
    small = zoo.preset("eps-mobilenetv2-256")
    train = replace(small.train, batch=2, workers=0)
    quick = replace(small, input=replace(small.input, size=(64, 64)), train=train)
    given = zoo.preset
    monkeypatch.setattr(zoo, "preset", lambda name: quick if name == quick.name else given(name))
    finder = save_small(tmp_path / "finder.safetensors")
    out = tmp_path / "out"
    command = ["pseudo-masks", "--data", str(folder), "--model", "eps-mobilenetv2-256"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--out", str(out)])
    assert "--saliency" in capsys.readouterr().err
    options = ["--saliency", str(finder), "--steps", "1", "--tta.scales", "0.5", "--out", str(out)]
    assert main([*command, *options]) == 0
    assert len(list((out / "saliency").rglob("*.png"))) == 4, "one image validates"
    assert len(list((out / "masks" / "train").iterdir())) == 5
    assert (out / "run" / "best.safetensors").is_file()


def test_a_model_that_does_not_learn_from_tags_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_small(tmp_path / "finder.safetensors")
    assert main(["pseudo-masks", "--data", str(folder), "--model", str(weights), "--out", str(tmp_path / "out")]) == 1
    assert "does not train on tags" in capsys.readouterr().err


class Brightness(torch.nn.Module):
    """Sees class 0 where an image is bright, class 1 everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1]

    def select(self, raw: torch.Tensor) -> TagMaps[torch.Tensor]:
        return TagMaps(torch.cat([raw, torch.ones_like(raw)], 1), torch.ones(1, 2))


def test_masks_lie_where_the_model_sees_the_tagged_class() -> None:
    image = torch.zeros(3, 24, 40, dtype=torch.uint8)
    image[:, :, :10] = 200
    input = InputConfig((40, 40), mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    model: Any = Brightness()

    def seen(tags: list[bool], settings: PseudoMasks) -> tuple[np.ndarray, np.ndarray]:
        found = localise(model, image, torch.tensor(tags), input, settings)
        assert found.present.tolist() == tags
        return rival_scores(found.activations, found.present, settings.threshold), label_map(found, settings.threshold)

    scores, labels = seen([True, False], PseudoMasks(scales=(0.5, 1.0), threshold=0.5))
    assert scores.shape == (3, 24, 40)
    assert float(scores[1].max()) == pytest.approx(1, abs=1e-3)
    assert not scores[2].any(), "without its tag the class is nowhere"
    assert (labels[:, :9] == 1).all()
    assert not labels[:, 12:].any()
    assert not seen([False, False], PseudoMasks())[1].any()
    assert (seen([False, True], PseudoMasks())[1] == 2).all()


def test_what_is_found_stands_out() -> None:
    meta = ImageMeta(1, "", (4, 6), (4, 6))
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2, :2] = masks[1, 3, 5] = True
    objects = Instances(np.zeros((2, 4), np.float32), np.zeros(2, int), np.ones(2, np.float32), Masks.from_dense(masks))
    assert np.array_equal(foreground(Prediction(meta, Categories.of("ab"), objects)) > 0, masks.any(0))
    with pytest.raises(DataError, match="with masks"):
        foreground(Prediction(meta, Categories.of("ab"), semantic=masks[0].astype(np.uint8)))


def test_saliency_of_a_semantic_model_is_as_sure_as_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("fcn8s-mobilenetv2-256", 3).train()
    for bias in (p for n, p in model.named_parameters() if n.startswith("score") and n.endswith("bias")):
        torch.nn.init.normal_(bias)
    names = Categories(("a", "background", "b"), (1, 0, 2))
    input = InputConfig((64, 64))
    image = tmp_path / "photos" / "noise.png"
    image.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    write_saliency(model, input, names, [image], tmp_path / "maps")
    found = read(tmp_path / "maps" / "photos" / "noise.png", (48, 64))
    assert model.training, "as it was"

    model.eval()
    view = normalise(torch.from_numpy(pixels).permute(2, 0, 1), input)[None]
    with torch.no_grad():
        plain, mirrored = (1 - model.select(model(v)).logits.softmax(1)[:, 1] for v in (view, view.flip(3)))
    assert plain.shape == (1, 48, 64)
    expected = (plain + mirrored.flip(2))[0] / 2
    assert torch.allclose(found, expected, atol=1 / 255)
    assert found.std() > 0, "a map"
