"""The built-in model's backbone and pyramid as a backbone."""

import pytest
import torch

from maskkit import zoo
from maskkit.errors import MaskkitError
from maskkit.models.nanoinst import NanoInst
from maskkit.nn.backbones.backbone import Backbone


def test_features_are_those_of_the_detector_with_the_same_weights() -> None:
    torch.manual_seed(0)
    whole = NanoInst(zoo.preset("nanoinst-416").model).eval()  # type: ignore[arg-type]
    backbone = Backbone("nanodet_plus_m", (4, 8, 16, 32)).eval()
    given = whole.state_dict()
    backbone.load_state_dict({name: given[name.removeprefix("body.")] for name in backbone.state_dict()})
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        features = backbone(images)
        inside = whole.backbone(images)
        levels = whole.fpn([inside[s] for s in (8, 16, 32)])
    assert list(features) == [4, 8, 16, 32]
    assert torch.equal(features[4], inside[4])
    assert all(torch.equal(features[8 << i], levels[i]) for i in range(3))
    assert {s: f.shape[1] for s, f in features.items()} == backbone.channels


def test_batch_norm_is_there_only_where_it_is_trained() -> None:
    def norms(net: Backbone) -> int:
        return sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())

    assert norms(Backbone("nanodet_plus_m")) == 0
    assert norms(Backbone("nanodet_plus_m", norm="train")) > 50
    assert not Backbone("nanodet_plus_m").is_of_timm


def test_options_of_other_backbones_are_refused() -> None:
    with pytest.raises(MaskkitError, match="nanodet_plus_m is trained as a whole"):
        Backbone("nanodet_plus_m", frozen_stride=4)
    with pytest.raises(MaskkitError, match=r"at strides \[4, 8, 16, 32\], not at \[64\]"):
        Backbone("nanodet_plus_m", (8, 64))
