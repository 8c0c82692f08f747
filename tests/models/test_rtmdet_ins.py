"""RTMDet-Ins: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints.convert import convert
from maskkit.errors import DataError
from maskkit.models.rtmdet_ins import RtmdetIns
from maskkit.zoo.rtmdet_ins import rename
from tests.models.conformance import Conformance

SMALL: dict[str, Any] = {
    "detector": {"width": 32, "min_score": 1e-3, "detections": 20},
    "masks": {"branch_width": 32},
}


class TestRtmdetIns(Conformance):
    preset = "rtmdet-ins-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL
    overfit: ClassVar[dict[str, Any]] = {"steps": 130, "lr": 3e-3, "size": (256, 256)}


class TestRtmdetInsPublished(Conformance):
    """The published network, of the smallest size."""

    variant = True
    preset = "rtmdet-ins-tiny"
    knobs: ClassVar[dict[str, Any]] = {**SMALL, "masks_to_train": 200}
    test_overfits_two_drawn_images = None  # type: ignore[assignment]  # the other backbone shows that the rest learns


def test_shapes_of_the_published_coco_model() -> None:
    with torch.device("meta"):
        net = RtmdetIns(zoo.preset("rtmdet-ins-tiny").model)  # type: ignore[arg-type]
        raw = net(torch.zeros(1, 3, 640, 640))
    assert [tuple(level.shape) for level in raw.detector.extra] == [
        (1, 169, 80, 80),
        (1, 169, 40, 40),
        (1, 169, 20, 20),
    ]
    assert raw.detector.quality == ()
    assert raw.branch.features.shape == (1, 8, 80, 80)
    assert sum(level.shape[2] * level.shape[3] for level in raw.detector.logits) == 8400


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 5.638187), ("s", 10.183311), ("m", 27.575111), ("l", 57.365663), ("x", 102.703767)]
)
def test_every_size_has_the_published_number_of_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        net = RtmdetIns(zoo.preset(f"rtmdet-ins-{size}").model)  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == round(millions * 1e6)


class TestKeyMap:
    def test_the_names_of_one_tower_are_one_tensor(self) -> None:
        conv, norm = torch.rand(4, 4, 3, 3), torch.rand(4)
        state = {f"bbox_head.{kind}_convs.{n}.1.conv.weight": conv.clone() for kind in ("cls", "reg") for n in range(3)}
        state |= {f"bbox_head.{kind}_convs.2.0.bn.weight": norm.clone() for kind in ("cls", "reg")}
        ours = rename(state)
        assert set(ours) == {"head.convs.1.weight", "head.norms.2.0.weight"}
        assert torch.equal(ours["head.convs.1.weight"], conv)

    def test_two_towers_are_refused(self) -> None:
        state = {f"bbox_head.{kind}_convs.0.0.conv.weight": torch.rand(4, 4, 3, 3) for kind in ("cls", "reg")}
        with pytest.raises(DataError, match=r"reg_convs\.0\.0\.conv\.weight' differs from its namesakes"):
            rename(state)

    def test_a_detector_without_masks_is_refused(self) -> None:
        with pytest.raises(DataError, match="is not a tensor in checkpoints of RTMDet-Ins"):
            convert({"bbox_head.rtm_obj.0.weight": torch.zeros(1)}, "rtmdet-ins-tiny")
