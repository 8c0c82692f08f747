"""Names of official PSENet checkpoints; the numbers behind them are checked in tests/parity."""

import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.errors import DataError
from maskkit.models.psenet import Psenet
from maskkit.zoo.psenet import rename


def official() -> dict[str, torch.Tensor]:
    """A state dict under the official names: ours, renamed back by an independent table."""
    with torch.device("meta"):
        ours = Psenet(zoo.preset("psenet-resnet50").model).state_dict()  # type: ignore[arg-type]
    places = {
        "backbone.body.conv1.0.": "backbone.conv1.",
        "backbone.body.conv1.1.": "backbone.bn1.",
        "backbone.body.conv1.3.": "backbone.conv2.",
        "backbone.body.conv1.4.": "backbone.bn2.",
        "backbone.body.conv1.6.": "backbone.conv3.",
        "backbone.body.bn1.": "backbone.bn3.",
        "backbone.body.layer": "backbone.layer",
        "fpn.lateral.3.": "fpn.toplayer_.",
        "fpn.lateral.2.": "fpn.latlayer1_.",
        "fpn.lateral.1.": "fpn.latlayer2_.",
        "fpn.lateral.0.": "fpn.latlayer3_.",
        "fpn.smooth.2.": "fpn.smooth1_.",
        "fpn.smooth.1.": "fpn.smooth2_.",
        "fpn.smooth.0.": "fpn.smooth3_.",
        "head.0.0.": "det_head.conv1.",
        "head.0.1.": "det_head.bn1.",
        "head.1.": "det_head.conv2.",
    }
    back = {}
    for name, tensor in ours.items():
        place = next(p for p in places if name.startswith(p))
        rest = name.removeprefix(place)
        if place.startswith("fpn"):
            rest = {"0": "conv.", "1": "bn."}[rest[0]] + rest[2:]
        back[places[place] + rest] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return back


def test_every_tensor_finds_its_place() -> None:
    state = official()
    assert len(published.convert(state, "psenet-resnet50")) == len(state) == 381


def test_what_does_not_fit_is_refused_by_name() -> None:
    state = official()
    with pytest.raises(DataError, match=r"fc\.weight"):
        rename({"fc.weight": torch.zeros(1)})
    with pytest.raises(DataError, match="get none"):
        published.convert({n: t for n, t in state.items() if "smooth1_" not in n}, "psenet-resnet50")
    with pytest.raises(DataError, match="this checkpoint has 2 classes"):
        published.convert(state, "psenet-resnet50", kernels=5)
