"""Mask2Former: the shared conformance for each task, and what is its own; transformers is the oracle."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import change
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.data.records import Annotation, Record
from maskkit.data.shapes import CATEGORIES
from maskkit.decode import LabelMap, Queries, Segments
from maskkit.decode.outputs import ClassLogits, ObjectMasks, ObjectQueries, SegmentQueries
from maskkit.eval.numbers import rank
from maskkit.geometry import rle as mask_math
from maskkit.models.base import Model
from maskkit.models.mask2former import Mask2Former, Mask2FormerConfig, Mask2FormerRaw
from maskkit.nn.losses import box_cells
from maskkit.nn.query_loss import Truth, box_costs, match
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from tests.models.conformance import Conformance
from tests.models.semantic import SemanticConformance

SMALL: dict[str, Any] = {
    "width": 64,
    "heads": 4,
    "pixel_decoder": {"layers": 1, "feedforward": 128},
    "query_decoder": {"queries": 20, "feedforward": 128},
    "query_loss": {"points": 1024},
    "detections": 30,
}


class TestMask2Former(Conformance):
    preset = "mask2former-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 120, "lr": 1e-3, "size": (320, 320)}


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_masks_may_be_scored_in_the_image(task: str) -> None:
    """As in the official codes: the decoder gets the masks of all queries, class scores have the size of the input."""
    config = change(zoo.preset("mask2former-mobilenetv2-256").model, **SMALL, task=task, num_classes=5)
    with torch.device("meta"):
        model, cells = (Mask2Former(change(config, scored_in=where)) for where in ("image", "cells"))  # type: ignore[arg-type]
    raw = Mask2FormerRaw(3 * torch.randn(1, 2, 20, 6), torch.randn(1, 2, 20, 8), torch.randn(1, 8, 16, 24))
    out, coarse = model.select(raw), cells.select(raw)
    masks = torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, -1], raw.features)
    chances = raw.logits[:, -1].softmax(2)[..., :-1]
    if task == "semantic":
        assert isinstance(out, ClassLogits)
        assert model.decoder == LabelMap(via_input=True)
        large = F.interpolate(masks, size=(64, 96), mode="bilinear").sigmoid()
        assert torch.allclose(out.logits, torch.einsum("bqk,bqhw->bkhw", chances, large), atol=1e-4)
        return
    assert isinstance(out, ObjectQueries)
    assert isinstance(coarse, ObjectMasks)
    assert model.decoder == Queries()
    assert torch.equal(out.masks, masks)
    assert torch.equal(out.scores, chances[0, out.queries[0], out.labels[0]][None])
    assert (out.scores >= coarse.scores.amax(1)).any(), "a mask's mean probability only lowers a score"


class TestMask2FormerSemantic(SemanticConformance):
    variant = True
    preset = "mask2former-mobilenetv2-320-semantic"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 150, "lr": 1e-3, "size": (256, 256)}

    def test_ignored_pixels_do_not_count(self) -> None:
        """As for the others; of this raw output only the features lie on a grid."""
        model = self.model().eval()
        batch = self.batch([3])
        (target,) = batch.targets
        assert target.semantic is not None
        half = target.semantic.clone()
        half[:, half.shape[1] // 2 :] = IGNORE
        batch.targets = [replace(target, semantic=half)]
        raw = model(batch.images)
        total = torch.stack(list(model.loss_terms(raw, batch).values())).sum()
        (gradient,) = torch.autograd.grad(total, raw.features)
        assert gradient.any()
        assert not gradient[..., round(gradient.shape[-1] * 0.75) :].any()

    def test_a_image_of_which_nothing_is_known_teaches_nothing(self) -> None:
        model = self.model().train()
        losses = model.loss_terms(model(self.cases()["not given"].images), self.cases()["not given"])
        assert all(value.item() == 0 for value in losses.values())


class TestMask2FormerPanoptic(Conformance):
    """Overfitted on images with the ground below the shapes as stuff, and evaluated by PQ."""

    variant = True
    preset = "mask2former-mobilenetv2-320-panoptic"
    categories: ClassVar[Categories] = Categories.of(CATEGORIES.names, stuff=["ground"])
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 120, "lr": 1e-3, "size": (320, 320)}

    def learnt(self, size: tuple[int, int]) -> Dataset:
        drawn = super().learnt(size)
        records = [replace(r, annotations=[*r.annotations, ground(r)]) for r in drawn.records]
        return replace(drawn, records=records, categories=self.categories)

    def agreement(self, model: Model, batch: Batch, data: Dataset) -> float:
        predictions = model.decode(model(batch.images), batch.metas, data.categories)
        return rank(self.task().evaluate([row for p in predictions for row in p.to_coco()], data).main["PQ"])

    def test_shapes_of_what_is_selected(self) -> None:
        model = self.model().eval()
        with torch.no_grad():
            chosen = model.select(model(self.batch([1, 2]).images))
        assert isinstance(chosen, SegmentQueries)
        assert chosen.masks.shape == (2, 20, 32, 32)
        assert chosen.labels.shape == chosen.scores.shape == (2, 20)
        assert int(chosen.labels.max()) <= model.config.num_classes
        assert model.decoder == Segments(score=0.5, overlap=0.8)

    def test_a_image_gives_the_same_alone_and_in_a_batch(self) -> None:
        model = self.model().eval()
        images = self.batch([1, 2]).images
        with torch.no_grad():
            together = model.select(model(images))
            alone = model.select(model(images[1:]))
        for a, b in zip(alone, together, strict=True):
            assert torch.allclose(a[0].float(), b[1].float(), atol=1e-3)


def ground(record: Record) -> Annotation:
    """What no object of an image covers."""
    rles = [rle for a in record.annotations if (rle := a.rle(record.size)) is not None]
    covered = np.any(mask_math.decode(rles, record.size), axis=0)
    (rle,) = mask_math.encode(~covered[None])
    return Annotation(-int(record.image_id), len(CATEGORIES), None, rle)


def model(**knobs: Any) -> Mask2Former:
    config = change(zoo.preset("mask2former-mobilenetv2-256").model, num_classes=3, **SMALL)
    config = change(change(config, query_decoder={"position_frequencies": 0}), **knobs)
    assert isinstance(config, Mask2FormerConfig)
    torch.manual_seed(0)
    return Mask2Former(config)


def raw_of(masks: Tensor, logits: Tensor) -> Mask2FormerRaw:
    """One layer whose mask logits (Q, h, w) and class logits (Q, D) are given."""
    return Mask2FormerRaw(logits[None, None], torch.eye(len(masks))[None, None], masks[None])


def batch_of(target: Target, size: tuple[int, int] = (64, 64)) -> Batch:
    images = torch.zeros(1, 3, *size)
    return Batch(images, full_sizes(images), [target], [ImageMeta(1, "", size, size)])


def squares(*corners: tuple[int, int, int, int], size: int = 64) -> Tensor:
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


LEFT, RIGHT, DOWN = (8, 8, 24, 40), (40, 8, 56, 24), (16, 48, 48, 60)


def shrunk(masks: Tensor) -> Tensor:
    """Confident logits at stride 4."""
    return F.avg_pool2d(masks[None].float(), 4)[0] * 16 - 8


def transformers_model() -> tuple[Any, dict[str, Any]]:
    """A small one with Swin-T, all of its weights random, and our knobs for the same."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    swin = transformers.SwinConfig(out_features=[f"stage{i}" for i in range(1, 5)], drop_path_rate=0.0)
    theirs = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin,
            num_labels=7,
            feature_size=64,
            mask_feature_size=64,
            hidden_dim=64,
            encoder_feedforward_dim=96,
            dim_feedforward=128,
            encoder_layers=2,
            decoder_layers=5,
            num_queries=12,
            train_num_points=256,
            output_auxiliary_logits=True,
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # they start at zero, which would hide mistakes
    return theirs, {
        "num_classes": 7,
        "width": 64,
        "pixel_decoder": {"layers": 2, "feedforward": 96},
        "query_decoder": {"queries": 12, "layers": 4, "feedforward": 128},
        "query_loss": {"points": 256},
    }


def test_predictions_and_losses_are_those_of_transformers() -> None:
    theirs, knobs = transformers_model()
    preset = zoo.preset("mask2former-swin-t")
    ours = Mask2Former(change(preset.model, **knobs)).eval()  # type: ignore[arg-type]
    ours.load_state_dict(published.convert(theirs.state_dict(), preset.name, **knobs))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 256, 288, generator=generator)
    masks = torch.rand(5, 1, 8, 9, generator=generator)
    masks = F.interpolate(masks, images.shape[2:], mode="bilinear")[:, 0] > 0.5
    labels = torch.tensor([0, 3, 6, 3, 1])
    with torch.no_grad():
        raw = ours(images)
        torch.manual_seed(2)
        wanted = theirs(
            images, mask_labels=[masks[:2].float(), masks[2:].float()], class_labels=[labels[:2], labels[2:]]
        )
        targets = [
            Target.of(torch.zeros(len(m), 4), k, m) for m, k in ((masks[:2], labels[:2]), (masks[2:], labels[2:]))
        ]
        metas = [ImageMeta(i, "", (256, 288), (256, 288)) for i in range(2)]
        torch.manual_seed(2)
        losses = ours.loss_terms(raw, Batch(images, full_sizes(images), targets, metas))
    found = torch.einsum("blqc,bchw->blqhw", raw.embeddings, raw.features)
    for layer, aux in enumerate([*wanted.auxiliary_logits, wanted]):
        assert torch.allclose(raw.logits[:, layer], aux["class_queries_logits"], atol=1e-4)
        assert torch.allclose(found[:, layer], aux["masks_queries_logits"], atol=1e-4)
    assert torch.stack(list(losses.values())).sum().item() == pytest.approx(wanted.loss.item(), rel=1e-4)


def test_shapes_of_the_published_coco_model() -> None:
    preset = zoo.preset("mask2former-resnet50")
    net = Mask2Former(preset.model).eval()  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == pytest.approx(44e6, rel=0.01)
    with torch.no_grad():
        raw = net(torch.zeros(1, 3, 96, 128))
    assert raw.logits.shape == (1, 10, 100, 81)
    assert raw.embeddings.shape == (1, 10, 100, 256)
    assert raw.features.shape == (1, 256, 24, 32)


def test_every_query_and_every_object_is_in_one_pair_and_the_best_is_found() -> None:
    net = model()
    masks = squares(LEFT, RIGHT, DOWN)
    order = [7, 0, 13]
    logits, given = torch.zeros(20, 4), torch.full((20, 16, 16), -8.0)
    given[order] = shrunk(masks)
    raw = raw_of(given, logits)
    truth = net.truth(Target.of(torch.zeros(3, 4), [0, 1, 2], masks), raw, batch_of(Target.of([], [])))
    pairs = match(logits, raw.embeddings[0, 0], raw.features[0], truth, net.config.query_loss)
    assert dict(zip(pairs.queries.tolist(), pairs.objects.tolist(), strict=True)) == {7: 0, 0: 1, 13: 2}
    crowded = Target.of(torch.zeros(30, 4), torch.zeros(30), squares(*[LEFT] * 30))
    truth = net.truth(crowded, raw, batch_of(crowded))
    pairs = match(logits, raw.embeddings[0, 0], raw.features[0], truth, net.config.query_loss)
    assert len(pairs.queries.unique()) == len(pairs.objects.unique()) == 20


def test_a_box_without_a_mask_finds_the_query_that_fills_it() -> None:
    net = model()
    masks = squares(LEFT, RIGHT, DOWN)
    given = torch.full((20, 16, 16), -8.0)
    given[[7, 0, 13]] = shrunk(masks)
    boxes = torch.tensor([LEFT, RIGHT, DOWN]).float()
    target = Target.of(boxes, [0, 0, 0], masks & False, has_mask=[False] * 3)
    raw = raw_of(given, torch.zeros(20, 4))
    truth = net.truth(target, raw, batch_of(target))
    assert not truth.known.any()
    pairs = match(raw.logits[0, 0], raw.embeddings[0, 0], raw.features[0], truth, net.config.query_loss)
    assert dict(zip(pairs.queries.tolist(), pairs.objects.tolist(), strict=True)) == {7: 0, 0: 1, 13: 2}
    costs = box_costs(raw.embeddings[0, 0], raw.features[0], truth)
    assert costs.shape == (20, 3)
    assert float(costs[7, 0]) < 0.1 < 1 < float(costs[7, 1])
    assert box_cells(boxes, (64, 64), (16, 16)).any((1, 2)).all()


def test_perfect_masks_cost_nothing_and_copies_are_no_objects() -> None:
    net = model(query_decoder={"queries": 3})
    masks = squares(LEFT, RIGHT)
    target = Target.of(torch.zeros(2, 4), [2, 1], masks)
    given = 4 * shrunk(masks)[[0, 1, 0]]
    logits = torch.full((3, 4), -9.0)
    logits[0, 2] = logits[1, 1] = logits[2, 3] = 9.0
    right = net.loss_terms(raw_of(given, logits), batch_of(target))
    assert right["classification"] < 1e-3
    inverse = net.loss_terms(raw_of(-given, logits), batch_of(target))
    assert right["mask"] + right["mask/dice"] < 0.05 * (inverse["mask"] + inverse["mask/dice"])
    logits[2, 3], logits[2, 2] = -9.0, 8.0  # a copy of the first
    wrong = net.loss_terms(raw_of(given, logits), batch_of(target))
    # one of three queries errs by 17, with the weight of no object
    assert wrong["classification"].item() == pytest.approx(2 * 0.1 * 17 / 2.1, rel=1e-3)


def test_what_a_crowd_hides_does_not_teach() -> None:
    net = model(query_decoder={"queries": 2}, query_loss={"uncertain": 0.0})
    masks = squares(LEFT, (0, 0, 64, 64))
    given = torch.cat([shrunk(masks[:1]), torch.full((1, 16, 16), -8.0)])
    given[0, :, 8:] = 8.0  # wrong, but hidden
    logits = torch.zeros(2, 4)
    crowd = Target.of(torch.zeros(2, 4), [0, 0], masks, crowd=[False, True])
    plain = Target.of(torch.zeros(1, 4), [0], masks[:1])
    hidden, seen = (net.loss_terms(raw_of(given, logits), batch_of(t))["mask"].item() for t in (crowd, plain))
    assert hidden < 0.2 * seen


def test_a_query_without_a_mask_sees_everything() -> None:
    net = model().eval()
    last = net.query_decoder.embed[4]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        features, levels = torch.zeros(1, 64, 16, 16), [torch.randn(1, 64, s, s) for s in (2, 4, 8)]
        last.bias[0] = 1.0
        features[:, 0] = -1.0  # every mask is empty
        empty = net.query_decoder(levels, features)
        features[:, 0] = 1.0  # every mask is full
        full = net.query_decoder(levels, features)
    for a, b in zip(empty, full, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_order_of_the_queries_is_only_an_order() -> None:
    net = model().eval()
    images = torch.randn(1, 3, 64, 64)
    order = torch.randperm(20)
    with torch.no_grad():
        before = net(images)
        for embedding in (net.query_decoder.queries, net.query_decoder.positions):
            embedding.weight.copy_(embedding.weight[order])
        after = net(images)
    assert torch.allclose(before.logits[:, :, order], after.logits, atol=1e-4)
    assert torch.allclose(before.embeddings[:, :, order], after.embeddings, atol=1e-4)


def test_with_positional_encoding_masks_start_at_places_that_are_spread_over_the_image() -> None:
    net = model(query_decoder={"queries": 100, "position_frequencies": 6}).eval()
    with torch.no_grad():
        raw = net(torch.randn(1, 3, 128, 192))
    near = torch.einsum("qc,chw->qhw", raw.embeddings[0, 0, :, 64:], raw.features[0, 64:])  # (Q, 32, 48)
    best = near.flatten(1).argmax(1)
    places = torch.stack([(best % 48 + 0.5) / 48, (best // 48 + 0.5) / 32], 1)
    assert net.query_decoder.near is not None
    assert (places - net.query_decoder.near.start).abs().max() < 1 / 32
    assert torch.cdist(places, places).add(torch.eye(100)).amin(1).min() > 0.05
    parts = (places * 5).long()
    assert torch.bincount(parts[:, 1] * 5 + parts[:, 0], minlength=25).min() >= 2, "of 100, each has 4 on average"


def test_one_network_is_read_in_three_ways() -> None:
    masks = shrunk(squares(LEFT, RIGHT))
    logits = torch.full((2, 4), -5.0)
    logits[0, 1] = logits[1, 3] = 5.0  # the second is no object
    raw = raw_of(masks, logits)
    instance, semantic, panoptic = (
        model(query_decoder={"queries": 2}, task=task).select(raw) for task in ("instance", "semantic", "panoptic")
    )
    assert isinstance(instance, ObjectMasks)
    assert isinstance(semantic, ClassLogits)
    assert isinstance(panoptic, SegmentQueries)
    assert int(instance.labels[0, 0]) == 1
    assert torch.allclose(instance.boxes[0, 0], torch.tensor(LEFT) / 64)
    assert float(instance.scores[0, 0]) > 0.99 > 0.01 > float(instance.scores[0, 1])
    inside = squares(LEFT)[0, ::4, ::4]
    assert torch.equal(semantic.logits[0].argmax(0)[inside], torch.ones(int(inside.sum()), dtype=torch.int64))
    assert semantic.logits[0, 1][inside].min() > 0.99
    assert panoptic.labels.tolist() == [[1, 3]]


def test_the_config_chooses_the_task() -> None:
    assert [model(task=task).task for task in ("instance", "semantic", "panoptic")] == [
        "instance",
        "semantic",
        "panoptic",
    ]


def test_label_maps_become_one_mask_per_class() -> None:
    net = model(task="semantic")
    semantic = torch.full((64, 64), 2, dtype=torch.uint8)
    semantic[:, :16], semantic[:16] = 0, IGNORE
    target = replace(Target.of([], []), semantic=semantic)
    raw = raw_of(torch.zeros(20, 16, 16), torch.zeros(20, 4))
    truth: Truth = net.truth(target, raw, batch_of(target))
    assert truth.labels.tolist() == [0, 2]
    assert truth.masks.sum((1, 2)).tolist() == [48 * 16, 48 * 48]
    assert int(truth.counted.sum()) == 48 * 64
