"""BlendMask: the shared conformance, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import torch

from maskkit.models.blendmask import IGNORED, BlendMask, BlendMaskRaw, blend, lay_out, semantic_loss
from maskkit.nn.losses import OUTSIDE
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance

SMALL = {
    "detector": {"width": 32, "tower_convs": 1, "size_ranges": (16.0, 24.0, 36.0)},
    "base_width": 16,
    "base_convs": 1,
    "masks_to_train": 32,
}


class TestBlendMask(Conformance):
    preset = "blendmask-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


def blendmask() -> BlendMask:
    net = TestBlendMask.model()
    assert isinstance(net, BlendMask)
    return net


def test_a_constant_on_all_attention_maps_changes_nothing() -> None:
    crops, attention = torch.randn(3, 4, 28, 28), torch.randn(3, 4 * 49)
    masks = blend(crops, attention, 7)
    assert masks.shape == (3, 28, 28)
    assert torch.allclose(masks, blend(crops, attention + 5, 7), atol=1e-5)


def test_attention_chooses_a_basis_for_each_place() -> None:
    crops = torch.arange(4.0)[None, :, None, None].expand(1, 4, 8, 8)
    attention = torch.full((1, 4, 2, 2), -50.0)
    for k, (row, column) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        attention[0, k, row, column] = 50  # position-sensitive maps, as FCIS puts masks together
    masks = blend(crops, attention.flatten(1), 2)[0]
    assert [round(float(masks[y, x]), 3) for y in (0, 7) for x in (0, 7)] == [0, 1, 2, 3]


def test_masks_are_laid_out_where_their_boxes_are() -> None:
    masks = torch.full((1, 8, 8), 3.0)
    masks[:, :, 4:] = -2  # the right half
    spread = lay_out(masks, torch.tensor([[8.0, 16, 40, 32]]), (16, 16), 4)[0]
    inside = spread != OUTSIDE
    assert torch.nonzero(inside.any(0))[:, 0].tolist() == list(range(2, 10))
    assert torch.nonzero(inside.any(1))[:, 0].tolist() == list(range(4, 8))
    assert torch.equal(spread[4:8, 2:10], masks[0, :4])


def test_what_training_lays_out_is_what_prediction_blends() -> None:
    """The crop of a box, laid out, is the blend of bases and attention at the cells themselves."""
    net = blendmask().eval()
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    bases = torch.stack([x, y, x - y, x + y])[None] / 8  # linear, so that every way to sample them is exact
    box = torch.tensor([[24.0, 16, 88, 112]])
    crops = net.crops(bases, torch.nn.functional.pad(box, (1, 0)))
    spread = lay_out(blend(crops, torch.zeros(1, 4 * 49), 7), box, (32, 32), 4)[0]
    inside = spread != OUTSIDE
    assert int(inside.sum()) == 16 * 24
    inner = inside & inside.roll(1, 0) & inside.roll(-1, 0) & inside.roll(1, 1) & inside.roll(-1, 1)
    assert torch.allclose(spread[inner], bases[0].mean(0)[inner], atol=1e-4)


def image(target: Target) -> Batch:
    images = torch.zeros(1, 3, 32, 32)
    return Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (32, 32), (32, 32))])


def test_of_two_objects_the_smaller_has_a_cell_and_crowds_lie_below() -> None:
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, :16, :16] = True  # 2 x 2 cells
    masks[1, :, :8] = True  # the left column of 4
    masks[2, :, 16:] = True  # a crowd on the right
    masks[2, :8] = True
    target = Target.of(torch.zeros(3, 4), [0, 1, 1], masks, [False, False, True])
    wanted = torch.tensor([[1, 1, IGNORED, IGNORED], [1, 1, IGNORED, IGNORED], [2, 0, IGNORED, IGNORED]])
    wanted = torch.cat([wanted, wanted[2:]])
    wanted[:2, 0] = torch.tensor([1, 1])
    areas = masks.sum((1, 2)).tolist()
    assert areas[0] == areas[1]  # of equals the later one: the left column
    wanted[:2, 0] = 2
    logits = torch.nn.functional.one_hot(wanted.clamp(min=0), 3).permute(2, 0, 1)[None].float() * 40
    assert semantic_loss(logits, image(target)) < 1e-6
    logits[0, :, 0, 3] = torch.tensor([0.0, 90, 0])  # what is said of a crowd does not matter
    assert semantic_loss(logits, image(target)) < 1e-6
    logits[0, :, 3, 1] = torch.tensor([0.0, 90, 0])
    assert semantic_loss(logits, image(target)) > 1


def test_a_image_with_an_unknown_mask_has_no_semantic_target() -> None:
    masks = torch.ones(2, 32, 32, dtype=torch.bool)
    target = Target.of(torch.zeros(2, 4), [0, 1], masks, has_mask=[True, False])
    assert semantic_loss(torch.randn(1, 3, 4, 4), image(target)) == 0


def test_in_a_mixture_each_object_trains_with_what_is_known_of_it() -> None:
    net = blendmask().train()
    batch = TestBlendMask.batch([3, 4], (5, 10))
    raw = net(batch.images)
    assert isinstance(raw, BlendMaskRaw)
    known = net.loss_terms(raw, batch)
    assert known["mask/projection"] == known["mask/pairwise"] == 0
    halves = [torch.arange(len(t)) % 2 == 0 for t in batch.targets]
    batch.targets = [replace(t, has_mask=h) for t, h in zip(batch.targets, halves, strict=True)]
    mixed = net.loss_terms(raw, batch)
    assert 0 < mixed["mask"] < known["mask"]
    assert mixed["mask/projection"] > 0
