"""Masks in the given boxes of a data set, by a model whose masks are known: the lower half of each box."""

from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from maskkit.config import InputConfig
from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, Record
from maskkit.decode.outputs import ObjectMasks
from maskkit.geometry import rle as mask_math
from maskkit.infer.in_boxes import masks_in_boxes
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.prediction import Categories
from tests.data.written import write_image
from tests.small import small_model

INPUT = InputConfig(size=(64, 96))
"""Of images of 40 x 60 pixels: stretched by 1.6."""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    objects = [
        Annotation(1, 0, (10, 10, 30, 30)),
        Annotation(2, 1, (0, 0, 60, 40), crowd=True),
        Annotation(3, 1, (30, 0, 60, 40)),
        Annotation(4, 0, None, [[10.0, 20, 20, 20, 20, 40, 10, 40]]),
    ]
    records = [Record(1, write_image(tmp_path / "1.png", size=(40, 60)), (40, 60), objects)]
    records.append(Record(2, write_image(tmp_path / "2.png", size=(40, 60)), (40, 60), objects[1:2]))
    return Dataset(records, Categories.of(["cat", "dog"]), tmp_path, "coco")


def lower_halves(raw: object, boxes: Float[Tensor, "b n 4"]) -> ObjectMasks[Tensor]:
    """Masks on a grid of a quarter of the input, in another order than the boxes."""
    numbers = torch.arange(boxes.shape[1]).flip(0).expand(boxes.shape[:2])
    boxes = boxes.flip(1)
    y, x = (torch.arange(0.5, n) / n for n in (16, 24))
    x1, y1, x2, y2 = (side[..., None, None] for side in boxes.unbind(-1))
    lower = (x >= x1) & (x <= x2) & (y[:, None] >= (y1 + y2) / 2) & (y[:, None] <= y2 + 0.2)
    ones = torch.ones(boxes.shape[:2])
    return ObjectMasks(boxes, numbers, ones, lower.float(), 0.8 * ones)


def test_each_box_gets_the_mask_that_was_drawn_in_it(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr(model, "select_in", lower_halves)
    runtime = TorchRuntime(model)
    first, crowd, second, third = masks_in_boxes(runtime, INPUT, dataset, 0)
    assert crowd is None
    assert masks_in_boxes(runtime, INPUT, dataset, 1) == [None]
    for drawn, (x1, y1, x2, y2) in ((first, (10, 20, 30, 30)), (second, (30, 20, 60, 40)), (third, (10, 30, 20, 40))):
        assert drawn is not None
        assert drawn.certainty == pytest.approx(0.8)
        mask = mask_math.decode([drawn.mask], (40, 60))[0]
        expected = np.zeros((40, 60), bool)
        expected[y1:y2, x1:x2] = True
        assert (mask != expected).sum() <= 0.3 * expected.sum()
        assert drawn.fit == pytest.approx(0.5, abs=0.1), "the mask is half as high as the box"
