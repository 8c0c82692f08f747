"""Features from inside a stage."""

import pytest
import torch

from maskkit.errors import MaskkitError
from maskkit.nn.backbones.backbone import Backbone


def test_what_enters_a_stride_is_the_output_of_its_first_block() -> None:
    torch.manual_seed(0)
    net = Backbone("mobilenetv3_large_100", (-8, -32, 32, 8)).eval()
    assert net.channels == {-8: 40, -32: 160, 32: 960, 8: 40}
    plain = Backbone("mobilenetv3_large_100", (8, 32)).eval()
    plain.load_state_dict(net.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, known = net(images), plain(images)
        assert {s: tuple(f.shape[2:]) for s, f in found.items()} == {
            -8: (8, 12),
            -32: (2, 3),
            32: (2, 3),
            8: (8, 12),
        }
        assert torch.equal(found[8], known[8])
        assert torch.equal(found[32], known[32])
        rest = found[-8]
        for block in net.body.blocks[2][1:]:
            rest = block(rest)
    assert torch.equal(rest, known[8])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "cspnext_tiny"])
def test_other_networks_have_none(name: str) -> None:
    with pytest.raises(MaskkitError, match="-32"):
        Backbone(name, (-32, 32))
