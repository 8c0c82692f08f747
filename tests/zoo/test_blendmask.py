"""Names of official BlendMask checkpoints; the numbers behind them are checked in tests/parity."""

import pytest
import torch

from maskkit import zoo
from maskkit.errors import DataError
from maskkit.models.blendmask import BlendMask
from maskkit.zoo.blendmask import rename


def test_what_blendmask_adds_to_fcos_has_its_place() -> None:
    official = [
        "top_layer.weight",
        "basis_module.refine.2.0.weight",
        "basis_module.refine.2.1.running_var",
        "basis_module.tower.2.1.bias",
        "basis_module.tower.4.0.weight",
        "basis_module.tower.5.bias",
        "basis_module.seg_head.4.weight",
        "basis_module.seg_head.6.bias",
        "proposal_generator.fcos_head.bbox_tower.9.weight",
        "backbone.top_block.p7.bias",
    ]
    with torch.device("meta"):
        ours = BlendMask(zoo.preset("blendmask-resnet50-1x").model).state_dict()  # type: ignore[arg-type]
    renamed = rename({name: torch.zeros(1) for name in official})
    assert len(renamed) == len(official)
    assert set(renamed) <= set(ours)


def test_a_name_of_condinst_is_refused() -> None:
    with pytest.raises(DataError, match="not a tensor in checkpoints of BlendMask"):
        rename({"controller.weight": torch.zeros(1)})
