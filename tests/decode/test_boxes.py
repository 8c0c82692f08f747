"""Masks on a grid over each box: pasted as torchvision and as detectron2 do it, one after the other."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskkit.decode import InBoxes, decode
from maskkit.prediction import Categories, ImageMeta, Instances

CATEGORIES = Categories.of(["thing"])


def made(count: int, size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels of an image of ``size``, some of them at its border or tiny, and smooth masks."""
    rng = np.random.default_rng(seed)
    limit = np.array(size[::-1])
    low = rng.uniform(0, 0.9, (count, 2)) * limit
    boxes = np.concatenate([low, np.minimum(low + rng.uniform(0.002, 0.6, (count, 2)) * limit, limit)], 1)
    noise = torch.from_numpy(rng.standard_normal((count, 1, 8, 8)))
    masks = F.interpolate(noise, size=(28, 28), mode="bicubic").sigmoid()[:, 0].numpy()
    return boxes.astype(np.float32), masks.astype(np.float32)


def pasted(decoder: InBoxes, boxes: np.ndarray, masks: np.ndarray, size: tuple[int, int]) -> Instances:
    count = len(boxes)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    selected = {
        "boxes": boxes / np.tile(np.array(size[::-1], np.float32), 2),
        "labels": np.zeros(count, np.int64),
        "scores": scores,
        "masks": masks,
        "mask_scores": scores,
    }
    arrays = {name: values[None] for name, values in selected.items()}
    found = decode(decoder, arrays, [ImageMeta(1, "", size, size)], CATEGORIES)[0].instances
    assert found is not None
    return found


@pytest.mark.parametrize("size", [(64, 96), (301, 199)])
def test_in_whole_pixels_as_torchvision(size: tuple[int, int]) -> None:
    boxes, masks = made(40, size)
    soft = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), size)[:, 0]
    wanted = (soft >= 0.5).numpy()
    found = pasted(InBoxes("whole_pixels"), boxes, masks, size)
    assert found.masks is not None
    differ = (found.masks.dense() != wanted).sum()
    assert differ <= 1e-4 * wanted.sum(), f"{differ} pixels differ, more than ties"


@pytest.mark.parametrize("size", [(64, 96), (301, 199)])
def test_exactly_where_the_box_is(size: tuple[int, int]) -> None:
    """Every pixel takes the value of the grid at its centre, nothing around it: grid_sample over the whole image."""
    boxes, masks = made(40, size)
    x1, y1, x2, y2 = (torch.from_numpy(v)[:, None].double() for v in boxes.T)
    x = (torch.arange(size[1]) + 0.5 - x1) / (x2 - x1) * 2 - 1  # (N, W)
    y = (torch.arange(size[0]) + 0.5 - y1) / (y2 - y1) * 2 - 1  # (N, H)
    grid = torch.stack([x[:, None].expand(-1, size[0], -1), y[:, :, None].expand(-1, -1, size[1])], -1)
    soft = F.grid_sample(torch.from_numpy(masks)[:, None].double(), grid, align_corners=False)[:, 0]
    wanted = (soft >= 0.5).numpy()
    found = pasted(InBoxes("exact"), boxes, masks, size)
    assert found.masks is not None
    assert (found.masks.dense() != wanted).sum() <= 1e-4 * wanted.sum()
    assert wanted.any((1, 2)).sum() > 20


def test_a_hundred_objects_of_a_large_image_need_little_memory() -> None:
    boxes, masks = made(100, (800, 1333))
    tracemalloc.start()
    found = pasted(InBoxes("exact"), boxes, masks, (800, 1333))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 100
    assert peak < 60e6, f"{peak / 1e6:.0f} MB; a hundred dense masks would take 107"


@pytest.mark.parametrize("paste", ["exact", "whole_pixels", "last_pixel"])
def test_boxes_thinner_than_a_pixel_are_pasted_too(paste: str) -> None:
    rng = np.random.default_rng(0)
    low = np.concatenate([rng.uniform(0, 60, (300, 2)), [[0, 0], [60.102386, 3]]])
    boxes = np.concatenate([low, low + np.exp(rng.uniform(-9, 1, low.shape))], 1).astype(np.float32).clip(0, 61)
    found = pasted(InBoxes(paste), boxes, np.ones((len(boxes), 28, 28), np.float32), (61, 61))  # type: ignore[arg-type]
    assert found.masks is not None
    assert len(found.masks) == len(boxes)
