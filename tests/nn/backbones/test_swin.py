"""Swin for images of any size."""

from typing import Any

import timm
import torch

from maskkit.nn.backbones import swin
from maskkit.nn.backbones.backbone import Backbone

NAME = "swin_tiny_patch4_window7_224"


def blocks() -> tuple[torch.nn.ModuleList, list[swin.SwinBlock]]:
    """The two blocks of timm's first stage, and ours of the same weights."""
    torch.manual_seed(0)
    net: Any = timm.create_model(NAME, strict_img_size=False)
    stage = net.layers[0].blocks.eval()
    return stage, [swin.SwinBlock(block, shifted=bool(i)) for i, block in enumerate(stage)]


def test_a_block_is_timms_where_windows_fill_the_map() -> None:
    theirs, ours = blocks()
    x = torch.randn(2, 21, 28, 96)
    with torch.no_grad():
        for a, b in zip(theirs, ours, strict=True):
            assert torch.allclose(a(x), b(x), atol=1e-5)


def test_windows_hold_every_cell_once_whatever_the_size() -> None:
    _, ours = blocks()
    for block in ours:
        for height, width in ((7, 7), (5, 3), (16, 23)):
            place, back = block.order(height, width, torch.device("cpu"))
            assert place.shape[1] == 49
            cells = place.flatten()
            assert torch.equal(cells[back], torch.arange(height * width))
            assert (cells == height * width).sum() == cells.numel() - height * width


def test_features_are_normalised_maps_of_four_strides() -> None:
    backbone = Backbone(NAME, (4, 8, 16, 32)).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 96, 160))
    assert {s: tuple(f.shape[1:]) for s, f in features.items()} == {
        4: (96, 24, 40),
        8: (192, 12, 20),
        16: (384, 6, 10),
        32: (768, 3, 5),
    }
    assert all(torch.allclose(f.mean(1), torch.zeros(()), atol=1e-4) for f in features.values())
