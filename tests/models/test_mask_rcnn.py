"""Mask R-CNN: the shared conformance, torchvision as the oracle, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import BoxOnly, change
from maskkit.data.shapes import CATEGORIES, draw
from maskkit.decode.outputs import ObjectMasks
from maskkit.errors import MaskkitError
from maskkit.models.mask_rcnn import MaskRcnn
from maskkit.nn.mask_stage import loss_from_boxes
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance

SMALL = {
    "width": 32,
    "box_width": 64,
    "mask_width": 32,
    "proposals": {"anchor_sizes": ((8,), (16,), (32,), (64,), (96,)), "before": (200, 100), "after": (100, 60)},
    "regions": {"sampled": 64, "detections": 20},
}


class TestMaskRcnn(Conformance):
    preset = "maskrcnn-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


class TestDetectron2(Conformance):
    """Adaptive sampling in RoIAlign."""

    variant = True
    preset = "maskrcnn-resnet50-d2-1x"
    knobs: ClassVar[dict[str, Any]] = {
        **SMALL,
        "backbone": {"name": "resnet26", "frozen_stride": 0, "pad_same": False},
        "mask_convs": 1,
    }
    overfit: ClassVar[dict[str, Any]] = {"steps": 120, "lr": 2e-3, "size": (160, 160)}


# torchvision as the oracle --------------------------------------------------------------------------------------------

CLASSES, SIZE = 5, (192, 256)


@pytest.fixture(scope="module")
def pair() -> tuple[MaskRCNN, MaskRcnn]:
    """torchvision's model with seeded weights that leave scores apart, and ours with the same ones."""
    torch.manual_seed(0)
    size = {"min_size": SIZE[0], "max_size": SIZE[1]}
    official = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **size)
    with torch.no_grad():
        for name, tensor in official.state_dict().items():
            if name.endswith("bn3.weight"):
                tensor.fill_(0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif name.endswith(("cls_score.weight", "cls_logits.weight")):
                tensor.normal_(std=0.01)
            elif name.endswith("bbox_pred.weight"):
                tensor.normal_(std=0.0005)
        logits: list[torch.Tensor] = []
        heads: Any = official.roi_heads
        hook = heads.mask_predictor.register_forward_hook(lambda *call: logits.append(call[2]))
        official.eval()(list(drawn_images(1)[0]))
        hook.remove()
        # masks of every class that cover about half of their boxes
        heads.mask_predictor.mask_fcn_logits.bias -= logits[0].mean((0, 2, 3))
    preset = zoo.preset("maskrcnn-resnet50")
    ours = MaskRcnn(change(preset.model, num_classes=CLASSES))  # type: ignore[arg-type]
    ours.load_state_dict(published.convert(official.state_dict(), preset.name, num_classes=CLASSES))
    return official, ours


def drawn_images(count: int) -> tuple[torch.Tensor, torch.Tensor, list[Target]]:
    """Drawn images on 0..1, the same normalised, and what is in them."""
    drawn = [draw(seed, SIZE, (3, 6)) for seed in range(count)]
    images = torch.stack([image / 255 for image, _ in drawn])
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return images, (images - mean) / std, [target for _, target in drawn]


def metas(count: int) -> list[ImageMeta]:
    return [ImageMeta(i, "", SIZE, SIZE) for i in range(count)]


def test_torchvision_sees_the_same(pair: tuple[MaskRCNN, MaskRcnn]) -> None:
    official, ours = pair[0].eval(), pair[1].eval()
    plain, images, _ = drawn_images(1)
    with torch.no_grad():
        theirs = official(list(plain))[0]
        found = ours.decode(ours(images), metas(1), CATEGORIES)[0].instances
    assert found is not None
    assert found.masks is not None
    assert len(found) == len(theirs["scores"]) > 50
    assert np.abs(found.scores - theirs["scores"].numpy()).max() < 1e-5
    assert np.array_equal(found.labels + 1, theirs["labels"])
    assert np.abs(found.boxes - theirs["boxes"].numpy()).max() < 1e-3
    masks = theirs["masks"][:, 0] > 0.5
    assert masks.sum() > 10_000
    differ = (found.masks.dense() != masks.numpy()).sum()
    assert differ <= 5, f"{differ} pixels differ, more than ties"


def test_torchvision_loses_the_same(pair: tuple[MaskRCNN, MaskRcnn], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))  # both sample the first ones
    official, ours = pair[0].train(), pair[1].train()
    backbone: Any = official.backbone
    backbone.body.eval()  # without pretrained weights torchvision does not freeze batch norm
    plain, images, targets = drawn_images(2)
    truth = [
        {"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.dense().to(torch.uint8)}
        for t in targets
        if t.masks is not None
    ]
    with torch.no_grad():
        theirs = official(list(plain), truth)
        batch = Batch(images, full_sizes(images), targets, metas(2))
        losses = ours.loss_terms(ours(images, None, targets), batch)
    names = {
        "classification/objectness": "loss_objectness",
        "box/proposals": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box": "loss_box_reg",
        "mask": "loss_mask",
    }
    for name, official_name in names.items():
        assert losses[name].item() == pytest.approx(theirs[official_name].item(), rel=1e-4), name
    assert losses["mask/projection"] == losses["mask/pairwise"] == 0, "every mask is known"


# what is its own ------------------------------------------------------------------------------------------------------


def small(**knobs: Any) -> MaskRcnn:
    torch.manual_seed(0)
    config = zoo.preset("maskrcnn-mobilenetv2-256").model
    return MaskRcnn(change(change(config, num_classes=len(CATEGORIES), **SMALL), **knobs))  # type: ignore[arg-type]


def test_a_mask_of_one_class_is_that_class_s_map() -> None:
    head = small().mask_head
    pooled, labels = torch.randn(6, 32, 14, 14), torch.tensor([0, 4, 2, 2, 1, 3])
    every = head.predictor(head.features(pooled))
    assert every.shape == (6, 5, 28, 28)
    assert torch.allclose(head(pooled, labels), every[torch.arange(6), labels], atol=1e-6)


def test_padding_neither_moves_boxes_nor_hides_them() -> None:
    """An image gives the same alone as with padding to its right and below, save what the padding adds to features."""
    model = small(regions={"min_score": 0.0}).eval()
    images = torch.randn(1, 3, 96, 128)
    padded = torch.nn.functional.pad(images, (0, 64, 0, 32))
    with torch.no_grad():
        raw = model(padded, torch.tensor([[96, 128]]))
    assert raw.boxes.extents.tolist() == [[128, 96]]
    assert raw.boxes.size.tolist() == [192, 128]
    assert (raw.regions.rois[:, 3] <= 128).all()
    assert (raw.regions.rois[:, 4] <= 96).all()
    selected = model.select(raw)
    assert isinstance(selected, ObjectMasks)
    assert float(selected.boxes[..., 0::2].max()) <= 128 / 192


def test_regions_of_box_only_objects_show_their_surroundings() -> None:
    model = small()
    _, target = draw(1, (128, 128), (4, 6))
    hidden = replace(target, has_mask=torch.zeros(len(target), dtype=torch.bool))
    images = torch.randn(1, 3, 128, 128)
    for given in (target, hidden):
        raw = model(images, None, [given])
        rois, matched = raw.boxes.sampled
        positive = matched >= 0
        tight, shown, boxes = rois[positive, 1:], raw.regions.rois[:, 1:], given.boxes[matched[positive]]
        if given.has_mask.all():
            assert torch.equal(tight, shown)
            continue
        assert (shown[:, :2] <= torch.minimum(tight, boxes)[:, :2]).all()
        assert (shown[:, 2:] >= torch.maximum(tight, boxes)[:, 2:]).all()
        assert ((shown[:, 2:] - shown[:, :2]) > (boxes[:, 2:] - boxes[:, :2])).all()


def test_box_loss_is_least_for_the_object_of_one_colour() -> None:
    """Of three masks inside its region, the truth costs less than the full box and than a shrunken object."""
    side, y, x = 128, *torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    disc = ((x - 63.5) ** 2 + (y - 63.5) ** 2 < 30**2).float()
    images = 200 * disc.expand(1, 3, side, side).contiguous() + 20
    target = Target.of([[34, 34, 94, 94]], [0])
    batch = Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (side, side), (side, side))])
    region = torch.tensor([[0.0, 24, 24, 104, 104]])
    cells = 24 + (torch.arange(28) + 0.5) * 80 / 28 - 64
    radius = (cells[:, None] ** 2 + cells**2).sqrt()
    square = torch.maximum(cells[:, None].abs(), cells.abs())

    def cost(mask: torch.Tensor) -> float:
        logits = torch.where(mask, 8.0, -8.0)[None]
        terms = loss_from_boxes(logits, region, target.boxes, batch, BoxOnly())
        return float(terms.projection.sum() + terms.pairwise)

    truth = cost(radius < 30)
    assert truth < 0.1
    assert cost(square < 30) > truth + 0.1, "the corners of the box have the colour of what lies around it"
    assert cost(radius < 20) > truth + 0.1


def test_torchvisions_second_version_learns_from_any_number_of_regions() -> None:
    model = small(batch_norm=True, rpn_convs=2, box_convs=2)
    assert [n for n, p in model.named_parameters() if "convs.0.0" in n] == [
        f"{head}.convs.0.0.weight" for head in ("box_head", "mask_head")
    ]
    for objects in ((0, 0), (3, 5)):
        image, target = draw(1, (128, 128), objects)
        images = (image / 255)[None]
        batch = Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (128, 128), (128, 128))])
        loss = torch.stack(list(model.loss(model(images, None, [target]), batch).values())).sum()
        loss.backward()
        assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with pytest.raises(MaskkitError, match=r"--model\.bottom-up"):
        small(batch_norm=True, bottom_up=True)


def test_pooling_is_a_knob() -> None:
    aligned, pooled = small(), small(pooling={"kind": "pool"})
    pooled.load_state_dict(aligned.state_dict())
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        a, b = (model.eval()(images).boxes.class_logits for model in (aligned, pooled))
    assert a.shape == b.shape
    assert not torch.allclose(a, b, atol=1e-4)
