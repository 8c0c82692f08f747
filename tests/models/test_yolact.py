"""YOLACT: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.geometry import boxes as box_math
from maskkit.models.yolact import Yolact, YolactConfig, YolactRaw, crop_window
from maskkit.targets import Target
from tests.models.conformance import Conformance

SMALL = {"width": 32, "prototypes": 16, "scales": ((12,), (20,), (32,), (48,), (72,))}


class TestYolact(Conformance):
    preset = "yolact-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


class TestYolactPlus(Conformance):
    """Deformable convolution and rescoring, on the smallest ResNet with bottleneck blocks."""

    preset = "yolact-plus-resnet50"
    knobs: ClassVar[dict[str, Any]] = {
        "backbone": {"name": "resnet26"},
        "width": 32,
        "prototypes": 16,
        "scales": ((12, 15), (20, 25), (32, 40), (48, 56), (64, 80)),
        "rescore_min_area": 4.0,
        "deformable": 2,
    }


def model(**knobs: object) -> Yolact:
    return Yolact(change(zoo.preset("yolact-mobilenetv2-256").model, num_classes=3, **{**SMALL, **knobs}))  # type: ignore[arg-type]


def test_shapes_of_the_published_coco_model() -> None:
    preset = zoo.preset("yolact-resnet50")
    assert isinstance(preset.model, YolactConfig)
    with torch.device("meta"):
        net = Yolact(preset.model)
    with torch.no_grad():
        raw = net.to_empty(device="cpu").eval()(torch.zeros(1, 3, 550, 550))
    assert raw.loc.shape == (1, 19248, 4)
    assert raw.conf.shape == (1, 19248, 81)
    assert raw.mask.shape == (1, 19248, 32)
    assert raw.priors.shape == (19248, 4)
    assert raw.proto.shape == (1, 138, 138, 32)
    assert raw.segm.shape == (1, 80, 69, 69)


def test_every_object_gets_an_anchor_and_the_best_pair_chooses_first() -> None:
    net = model()
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    exact, rival = [0.4, 0.4, 0.6, 0.6], [0.41, 0.4, 0.61, 0.6]
    matches = net.match(Target.of([rival, exact], [0, 1]), priors)
    assert matches.classes.tolist() == [2, 1, 0]
    assert matches.objects[:2].tolist() == [1, 0]


def test_matching_agrees_with_the_loop_it_replaces() -> None:
    rng = np.random.default_rng(3)
    net = model()
    priors = net.priors([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], (128, 128))
    for count in (1, 7, 40):
        low = rng.uniform(0, 0.8, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.02, 0.4, (count, 2))], 1)
        target = Target.of(boxes, rng.integers(0, 3, count))
        overlaps = box_math.iou(target.boxes, box_math.to_corners(priors))
        best, objects = overlaps.max(0)
        for _ in range(count):
            n, p = divmod(int(overlaps.argmax()), overlaps.shape[1])
            best[p], objects[p] = 2, n
            overlaps[n], overlaps[:, p] = -1, -1
        matches = net.match(target, priors)
        assert torch.equal(matches.classes > 0, best >= 0.5)
        assert torch.equal(matches.objects[best >= 0.5], objects[best >= 0.5])


def test_anchors_inside_a_crowd_are_neither_object_nor_background() -> None:
    net = model()
    priors = torch.tensor([[0.25, 0.25, 0.1, 0.1], [0.75, 0.75, 0.1, 0.1]])
    matches = net.match(Target.of([[0, 0, 0.5, 0.5]], [0], crowd=[True]), priors)
    assert matches.classes.tolist() == [-1, 0]


def test_crop_window_is_the_box_and_one_cell_around() -> None:
    window = crop_window(torch.tensor([[0.25, 0.5, 0.5, 0.75]]), (8, 8))[0]
    assert torch.nonzero(window.any(0))[:, 0].tolist() == [1, 2, 3, 4]
    assert torch.nonzero(window.any(1))[:, 0].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("nms", ["fast", "cross-class", "traditional"])
def test_an_empty_image_gives_no_detection(nms: str) -> None:
    net = model(nms=nms).eval()
    priors = net.priors([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], (128, 128))
    conf = torch.zeros(1, len(priors), 4)
    conf[..., 0] = 20
    raw = YolactRaw(
        torch.zeros(1, len(priors), 4),
        conf,
        torch.zeros(1, len(priors), 16),
        priors,
        torch.zeros(1, 32, 32, 16),
        torch.zeros(1, 3, 16, 16),
    )
    assert (net.select(raw).scores == 0).all()


def test_nms_variants_keep_one_of_two_copies() -> None:
    for nms, kept in (("fast", 2), ("traditional", 2), ("cross-class", 1)):
        net = model(nms=nms).eval()
        priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.505, 0.5, 0.2, 0.2]])
        # both anchors see class 0 best and class 1 second: two classes survive, unless classes suppress each other
        conf = torch.tensor([[[0.0, 5, 4, -9], [0.0, 4.5, 4, -9]]])
        raw = YolactRaw(
            torch.zeros(1, 2, 4), conf, torch.zeros(1, 2, 16), priors, torch.zeros(1, 8, 8, 16), torch.zeros(1, 3, 4, 4)
        )
        found = net.detect(raw)
        assert int((found.scores > 0.1).sum()) == kept, nms
        assert int(found.labels[0, 0]) == 0
