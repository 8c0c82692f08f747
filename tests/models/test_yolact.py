"""YOLACT: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import pytest
import torch

from maskkit import zoo
from maskkit.config import change
from maskkit.models.yolact import Yolact, YolactConfig, YolactRaw
from tests.models.conformance import Conformance

SMALL = {"width": 32, "prototypes": 16, "scales": ((12,), (20,), (32,), (48,), (72,))}


class TestYolact(Conformance):
    preset = "yolact-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


class TestYolactPlus(Conformance):
    """Deformable convolution and rescoring, on the smallest ResNet with bottleneck blocks."""

    variant = True
    preset = "yolact-plus-resnet50"
    no_openvino = "it has no deformable convolution"
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


def test_clipped_boxes_compete_inside_of_the_image() -> None:
    """Two anchors at the right edge overlap little as a whole, and are the same box inside of the image."""
    priors = torch.tensor([[0.95, 0.5, 0.2, 0.2], [0.985, 0.5, 0.27, 0.2]])
    conf = torch.tensor([[[0.0, 5, -9, -9], [0.0, 4.5, -9, -9]]])
    code = torch.zeros(1, 2, 4)
    code[0, 1, 2] = 100.0  # limited to 62.5 times the anchor
    raw = YolactRaw(code, conf, torch.zeros(1, 2, 16), priors, torch.zeros(1, 8, 8, 16), torch.zeros(1, 3, 4, 4))
    wide = model(clip=True, nms_threshold=0.05).eval().detect(raw)
    assert wide.boxes[0, :, 0].min() == 0
    assert wide.boxes[0, :, 2].max() == 1
    for clip, kept in ((False, 2), (True, 1)):
        found = model(clip=clip, nms_threshold=0.75).eval().detect(raw._replace(loc=torch.zeros(1, 2, 4)))
        assert int((found.scores > 0.1).sum()) == kept


def test_the_best_anchors_of_each_level_are_candidates_and_objects_may_need_a_score() -> None:
    net = model(level_candidates=2, min_score=0.0, nms_threshold=1.0).eval()
    counts = [side * side * 3 for side in (16, 8, 4, 2, 1)]
    priors = net.priors([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], (128, 128))
    conf = torch.randn(1, len(priors), 4, generator=torch.Generator().manual_seed(0))
    proto = torch.zeros(1, 32, 32, 16)
    raw = YolactRaw(
        torch.zeros(1, len(priors), 4), conf, torch.zeros(1, len(priors), 16), priors, proto, torch.zeros(1, 3, 16, 16)
    )
    found = net.detect(raw)
    assert int((found.scores > 0).sum()) == 5 * 2 * 3  # classes
    foreground = conf.softmax(2)[0, :, 1:]
    best = [level.amax(1).topk(2).values for level in foreground.split(counts)]
    assert torch.allclose(found.scores[0].max(), torch.cat(best).max())
    least = float(found.scores[0, 5])
    strict = model(level_candidates=2, min_score=0.0, nms_threshold=1.0, final_score=least).eval().detect(raw)
    assert int((strict.scores > 0).sum()) == 5
