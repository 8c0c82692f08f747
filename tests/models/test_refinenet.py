"""RefineNet under the suite that all semantic methods share, and what is its own."""

from typing import Any, ClassVar

import torch

from maskkit.models.refinenet import Block, ChainedPooling, ResidualUnit
from tests.models.semantic import SemanticConformance


class TestRefinenet(SemanticConformance):
    preset = "refinenet-mobilenetv2-320"
    knobs: ClassVar[dict[str, Any]] = {"widths": (32, 16, 16, 16), "dropout": 0.0}


def test_a_unit_whose_last_convolution_is_zero_is_the_identity() -> None:
    unit = ResidualUnit(4)
    torch.nn.init.zeros_(unit.second.weight)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(unit(x), x)


def test_another_link_of_the_chain_only_adds() -> None:
    torch.manual_seed(0)
    two, three = ChainedPooling(4, 2), ChainedPooling(4, 3)
    three.load_state_dict(two.state_dict(), strict=False)
    torch.nn.init.zeros_(three.convs[2].weight)  # type: ignore[arg-type]
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(two(x), three(x))
    assert two(x).shape == x.shape


def test_the_coarser_path_is_added_at_the_finer_size() -> None:
    block = Block(8, 4, coarser=4, after=None, pools=1).eval()
    fine, coarse = torch.randn(1, 8, 10, 14), torch.randn(1, 4, 5, 7)
    assert block(fine, coarse).shape == (1, 4, 10, 14)
    assert not torch.allclose(block(fine, coarse), block(fine, coarse * 0))
