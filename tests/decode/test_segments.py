"""Segments that compete for the pixels of an image: Mask2Former's panoptic inference."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskkit.decode import Segments, decode
from maskkit.decode import segments as module
from maskkit.decode.outputs import SegmentQueries
from maskkit.geometry.resample import strips
from maskkit.models.base import to_arrays
from maskkit.prediction import Categories, ImageMeta, Panoptic

NAMES = Categories.of(["cat", "dog"], stuff=["sky"])
CAT, DOG, SKY, NOTHING = range(4)
PUBLISHED = Segments(score=0.8, overlap=0.8)


def cut(
    logits: torch.Tensor,
    labels: list[int],
    scores: list[float],
    meta: ImageMeta | None = None,
    decoder: Segments = PUBLISHED,
    score: float = 0.0,
) -> Panoptic:
    """The panoptic image of mask logits (Q, h, w)."""
    selected = SegmentQueries(logits[None], torch.tensor([labels]), torch.tensor([scores]))
    size = (logits.shape[1], logits.shape[2])
    (prediction,) = decode(decoder, to_arrays(selected), [meta or ImageMeta(1, "", size, size)], NAMES, score)
    assert prediction.panoptic is not None
    assert prediction.instances is None
    return prediction.panoptic


def bars(*extents: tuple[int, int], width: int = 20, height: int = 3, inside: float = 5.0) -> torch.Tensor:
    """Logits of upright bars from one column to another."""
    logits = torch.full((len(extents), height, width), -5.0)
    for bar, (left, right) in zip(logits, extents, strict=True):
        bar[:, left:right] = inside
    return logits


def test_things_stay_apart_and_stuff_becomes_one() -> None:
    found = cut(bars((0, 5), (5, 10), (10, 15), (17, 20)), [CAT, CAT, SKY, SKY], [0.9, 0.95, 0.85, 0.99])
    assert found.ids[0].tolist() == [1] * 5 + [2] * 5 + [3] * 5 + [0] * 2 + [3] * 3
    assert [(s.id, s.label, s.thing) for s in found.segments] == [(1, 0, True), (2, 0, True), (3, 2, False)]
    assert [s.score for s in found.segments] == pytest.approx([0.9, 0.95, 0.99])


def test_no_object_and_low_scores_are_left_out() -> None:
    logits = bars((0, 5), (5, 10), (10, 15))
    assert [s.label for s in cut(logits, [NOTHING, CAT, DOG], [0.99, 0.8, 0.81]).segments] == [DOG]
    assert cut(logits, [CAT, CAT, DOG], [0.9, 0.9, 0.99], score=0.95).ids.max() == 1
    empty = cut(logits, [NOTHING] * 3, [0.9] * 3)
    assert (len(empty), empty.ids.max()) == (0, 0)


def test_the_surer_one_gets_the_pixel_and_the_loser_goes() -> None:
    """Of ten columns the second keeps eight or seven; what goes leaves its pixels to nobody."""
    kept = cut(bars((0, 8), (6, 16)), [CAT, DOG], [0.95, 0.9])
    assert kept.ids[0].tolist() == [1] * 8 + [2] * 8 + [0] * 4
    gone = cut(bars((0, 8), (5, 15)), [CAT, DOG], [0.95, 0.9])
    assert gone.ids[0].tolist() == [1] * 8 + [0] * 12
    assert cut(bars((0, 8), (5, 15)), [CAT, DOG], [0.95, 0.9], decoder=Segments(0.8, 0.7)).ids.max() == 2


def test_logits_go_to_the_input_first_and_without_padding_to_the_image() -> None:
    """As torch does it, in the two steps of the official code."""
    logits = 4 * torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    scores = [0.9, 0.85, 0.95]
    meta = ImageMeta(1, "", (50, 81), (32, 48), np.array([[81 / 44, 0, 0], [0, 50 / 27, 0]]))
    ours = cut(logits, [CAT, CAT, DOG], scores, meta, decoder=Segments(0.8, 0.0))
    fine = F.interpolate(logits[None], size=(32, 48), mode="bilinear")[..., :27, :44]
    fine = F.interpolate(fine, size=(50, 81), mode="bilinear")[0]
    best = (torch.tensor(scores)[:, None, None] * fine.sigmoid()).argmax(0)
    expected = torch.where(fine.gather(0, best[None])[0] >= 0, best + 1, 0).numpy()
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    assert (ours.ids == expected).mean() > 0.999


def test_a_large_image_is_done_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 4 * torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    meta = ImageMeta(1, "", (200, 100), (36, 36), np.array([[100 / 36, 0, 0], [0, 200 / 36, 0]]))
    whole = cut(logits, [CAT, CAT, SKY], [0.9] * 3, meta, decoder=Segments(0.8, 0.0))
    monkeypatch.setattr(module, "strips", partial(strips, values=1000))
    in_strips = cut(logits, [CAT, CAT, SKY], [0.9] * 3, meta, decoder=Segments(0.8, 0.0))
    assert np.array_equal(in_strips.ids, whole.ids)
    assert in_strips.segments == whole.segments


def test_a_mirrored_image_is_turned_back() -> None:
    meta = ImageMeta(1, "", (3, 20), (3, 20), np.array([[-1.0, 0, 20], [0, 1, 0]]))
    assert cut(bars((0, 5)), [CAT], [0.9], meta).ids[0].tolist() == [0] * 15 + [1] * 5
