"""Queries with a mask and several classes: objects scored by their masks in the image, as official codes do."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskkit.decode import Queries, decode
from maskkit.decode import queries as module
from maskkit.decode.outputs import ObjectQueries
from maskkit.models.base import to_arrays
from maskkit.prediction import Categories, ImageMeta, Instances

NAMES = Categories.of(["cat", "dog"], stuff=["sky"])
# an image of 30 x 50 that fills 24 x 40 of an input of 32 x 64
META = ImageMeta(1, "", (30, 50), (32, 64), np.diag([50 / 40, 30 / 24, 1.0]))


def objects(masks: torch.Tensor, pairs: list[tuple[int, int, float]], score: float = 0.0) -> Instances:
    """The objects of mask logits (Q, 8, 16) and of pairs of query, label and score."""
    queries, labels, scores = (torch.tensor([values]) for values in zip(*pairs, strict=True))
    (found,) = decode(Queries(), to_arrays(ObjectQueries(masks[None], queries, labels, scores)), [META], NAMES, score)
    assert found.instances is not None
    return found.instances


@pytest.mark.parametrize("at_once", [1 << 26, 2000])
def test_masks_and_scores_are_those_of_two_interpolations(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    masks = 3 * torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
    found = objects(masks, [(2, 0, 0.9), (0, 1, 0.8), (2, 1, 0.5)])
    whole = F.interpolate(masks[None], size=(32, 64), mode="bilinear")[..., :24, :40]
    whole = F.interpolate(whole, size=(30, 50), mode="bilinear")[0]
    inside = whole > 0
    sure = (whole.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2))
    wanted = {(0, 0.9 * float(sure[2])), (1, 0.8 * float(sure[0])), (1, 0.5 * float(sure[2]))}
    for label, score in wanted:
        assert any(label == ours and abs(score - s) < 1e-5 for ours, s in zip(found.labels, found.scores, strict=True))
    assert (np.diff(found.scores) <= 0).all()
    dense = found.masks.dense() if found.masks is not None else np.zeros(0)
    best = int(np.argmax(found.scores))
    query = {0: 2, 1: 0}[int(found.labels[best])]
    assert (dense[best] == inside[query].numpy()).mean() > 0.999


def test_stuff_low_scores_and_empty_masks_are_left_out() -> None:
    masks = torch.full((3, 8, 16), -5.0)
    masks[:2, 1:4, 2:6] = 5.0
    found = objects(masks, [(0, 2, 0.9), (0, 0, 0.8), (1, 1, 0.3), (2, 0, 0.7)], score=0.4)
    assert found.labels.tolist() == [0]
    assert len(objects(masks, [(2, 0, 0.7)])) == 0
