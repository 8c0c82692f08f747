"""PSPNet under the suite that all semantic methods share, and what is its own."""

from typing import Any, ClassVar

import pytest
import torch

from maskkit.errors import MaskkitError
from maskkit.models.pspnet import PyramidPooling
from tests.models.semantic import SemanticConformance


class TestPspnet(SemanticConformance):
    preset = "pspnet-mobilenetv2-321"
    knobs: ClassVar[dict[str, Any]] = {"width": 32, "auxiliary_width": 16}
    size = (97, 97)
    overfit: ClassVar[dict[str, Any]] = {"steps": 200, "lr": 3e-3, "size": (161, 161)}


def test_a_single_cell_sees_the_whole_image_everywhere() -> None:
    pooling = PyramidPooling(8, (1, 2)).eval()
    joined = pooling(torch.randn(1, 8, 9, 9))
    assert joined.shape == (1, 16, 9, 9)
    whole = joined[0, 8:12]
    assert torch.allclose(whole, whole[:, :1, :1].expand_as(whole))
    assert not torch.allclose(joined[0, 12:], joined[0, 12:, :1, :1].expand(4, 9, 9))


def test_sides_that_are_not_8n_plus_1_are_refused() -> None:
    net = TestPspnet.model()
    with pytest.raises(MaskkitError, match="8 n"):
        net(torch.zeros(1, 3, 96, 97))
