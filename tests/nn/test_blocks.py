"""Linear layers: where gradients are wanted and where they are not, one function; deformable stages."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskkit.errors import MaskkitError
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.blocks import DeformConv, deform_stages, linear


@pytest.mark.parametrize(("then", "plain"), [("none", lambda y: y), ("relu", F.relu), ("gelu", F.gelu)])
def test_inference_gives_what_training_gives(then: str, plain: object) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 10)
    x = torch.randn(3, 7, 48)[..., ::2]  # its numbers do not lie side by side
    learnt = linear(x, layer.weight, layer.bias, then)  # type: ignore[arg-type]
    with torch.inference_mode():
        inferred = linear(x, layer.weight, layer.bias, then)  # type: ignore[arg-type]
    assert learnt.requires_grad
    assert torch.equal(learnt, plain(layer(x)))  # type: ignore[operator]
    assert torch.allclose(inferred, learnt, atol=1e-5)


def test_autocast_decides_on_the_precision() -> None:
    layer = nn.Linear(8, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(2, 8), layer.weight, layer.bias).dtype == torch.bfloat16


def test_deformable_convolution_is_for_resnets() -> None:
    body = Backbone("resnet18").body
    deform_stages(body, every=2, bias=False)
    made = [isinstance(block.conv2, DeformConv) for stage in (body.layer2, body.layer3) for block in stage]
    assert made == [True, False, True, False]
    assert not any(isinstance(block.conv2, DeformConv) for block in body.layer1)
    with pytest.raises(MaskkitError, match="is for ResNets"):
        deform_stages(Backbone("mobilenetv2_100").body)
