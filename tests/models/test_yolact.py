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
