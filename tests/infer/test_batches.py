"""No prediction depends on the images that share its forward pass."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskkit import zoo
from maskkit.api import Segmenter
from maskkit.checkpoints.checkpoint import load_model
from maskkit.config import change
from maskkit.data import open_dataset
from maskkit.data.shapes import draw, write
from maskkit.infer.predict import Predictor
from maskkit.infer.torch_runtime import predictor
from maskkit.prediction import Categories, Prediction
from tests.small import small_config, small_model

SIZES = [(40, 60), (60, 40), (40, 61), (90, 40), (40, 60), (64, 64), (40, 90)]
CLASSES = Categories.of(["a", "b", "c"])
FAST = ("condinst", "deeplabv3", "fasterrcnn", "polarmask", "refinenet", "solov2", "yolact")
SMALL = {p.name.partition("-")[0]: p for p in reversed(zoo.presets()) if p.small and not p.name.startswith("pspnet")}


def images(sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    return [draw(i, size)[0].permute(1, 2, 0).numpy() for i, size in enumerate(sizes)]


def check_same(alone: list[Prediction], together: list[Prediction]) -> int:
    """Fail where the predictions differ by more than rounding; returns how many objects there are."""
    count = 0
    assert [p.meta.image_id for p in alone] == [p.meta.image_id for p in together]
    for a, b in zip(alone, together, strict=True):
        assert a.meta.input_size == b.meta.input_size
        assert len(a) == len(b)
        count += len(a)
        if a.instances is not None and b.instances is not None:
            assert np.array_equal(a.instances.labels, b.instances.labels)
            np.testing.assert_allclose(a.instances.scores, b.instances.scores, atol=2e-5)
            np.testing.assert_allclose(a.instances.boxes, b.instances.boxes, atol=1e-2)
        if a.semantic is not None and b.semantic is not None:
            assert (a.semantic != b.semantic).mean() < 1e-3
    return count


@pytest.mark.parametrize("family", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in SMALL])
def test_batches_of_images_of_many_sizes_give_what_each_image_gives(family: str) -> None:
    preset = SMALL[family]
    torch.manual_seed(0)
    model = zoo.model_class(preset.name)(change(preset.model, num_classes=3)).eval()
    found = predictor(model, replace(preset.input, size=(64, 160), resize="shorter"), CLASSES)
    given = images(SIZES)
    check_same(list(found.images(given)), list(found.images(given, batch=3)))


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    return predictor(small_model(), replace(small_config().input, resize="shorter", size=(48, 96)), CLASSES)


@settings(max_examples=8)
@given(st.lists(st.tuples(st.integers(8, 90), st.integers(8, 90)), min_size=1, max_size=7), st.integers(2, 5))
def test_any_sizes_in_any_order(tiny: Predictor, sizes: list[tuple[int, int]], batch: int) -> None:
    given = images(sizes)
    alone, together = (list(tiny.images(given, batch=n)) for n in (1, batch))
    assert [p.meta.size for p in together] == sizes
    assert check_same(alone, together) > 0


def test_a_bad_image_among_images_of_many_sizes(tiny: Predictor, tmp_path: Path) -> None:
    failures = []
    given = [*images(SIZES[:3]), tmp_path / "missing.png", *images(SIZES[3:])]
    found = list(tiny.images(given, batch=3, failed=failures.append))
    assert [p.meta.image_id for p in found] == [1, 2, 3, 5, 6, 7, 8]
    assert len(failures) == 1


def test_a_training_measures_what_eval_measures(tmp_path: Path) -> None:
    """Both at any batch size, for images of many sizes."""
    data = write(tmp_path / "data", train=3, val=1, size=(48, 64))
    other = write(tmp_path / "other", train=1, val=2, size=(72, 40), seed=5)
    truth, more = (json.loads((folder / "val.json").read_text()) for folder in (data, other))
    for image in more["images"]:
        for annotation in more["annotations"]:
            if annotation["image_id"] == image["id"]:
                truth["annotations"].append(
                    {**annotation, "id": 1000 + annotation["id"], "image_id": 100 + image["id"]}
                )
        name = f"other_{Path(image['file_name']).name}"
        shutil.copy(other / "images" / Path(image["file_name"]).name, data / "images" / name)
        truth["images"].append({**image, "id": 100 + image["id"], "file_name": f"images/{name}"})
    (data / "val.json").write_text(json.dumps(truth))
    sections = {
        "model": {"width": 16},
        "input": {"size": (48, 96), "resize": "shorter"},
        "augment": {"iou_crop": False, "expand": 1.0},
        "train": {"steps": 2, "batch": 3, "workers": 0},
    }
    segmenter = Segmenter.train("yolact-mobilenetv2-256", data, tmp_path / "run", **sections)  # type: ignore[arg-type]
    rows = json.loads((tmp_path / "run" / "predictions.json").read_text())
    best = load_model(tmp_path / "run" / "best.safetensors")
    plain = Segmenter.of(best.model, best.config.input, best.categories)
    for found, batch in ((plain, 1), (plain, 3), (segmenter, 2)):  # the last one with folded batch norm
        again, _ = found.detect(open_dataset(data, "val"), batch)
        assert len(again) == len(rows) > 0
        assert [r["image_id"] for r in again] == [r["image_id"] for r in rows]
        ours, theirs = ([r["score"] for r in some] for some in (again, rows))  # type: ignore[typeddict-item]
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
