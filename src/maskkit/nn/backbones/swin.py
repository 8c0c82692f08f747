"""Swin transformers (Liu et al., ICCV 2021) as backbones for images of any size.

timm's Swin is made for images of one size: a map that is not a multiple of the window size is shifted before it is
padded, and a map as small as a window is not shifted at all. In dense prediction, maps are padded first and always
shifted, and published weights expect that. `SwinBlock` does so, with the parameters of timm's block under timm's names.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from maskkit.nn.blocks import in_pieces, linear

OPTIONS: dict[str, Any] = {"strict_img_size": False, "drop_path_rate": 0.3}
"""Options of `timm.create_model` for dense prediction."""


def is_swin(name: str) -> bool:
    """Whether ``name`` is a Swin transformer of timm, version 1."""
    return name.startswith("swin_")


def replace_blocks(body: nn.Module) -> None:
    """Replace every block of timm's network by a `SwinBlock`."""
    for stage in list(body.modules()):
        for name, block in list(stage.named_children()):
            if isinstance(block, SwinTransformerBlock):
                setattr(stage, name, SwinBlock(block, shifted=int(name) % 2 == 1))


class SwinBlock(nn.Module):
    """Attention within windows, shifted by half a window in every second block, then a feed-forward network."""

    def __init__(self, block: SwinTransformerBlock, shifted: bool) -> None:
        super().__init__()
        self.norm1: nn.Module = block.norm1
        self.attn: Any = block.attn
        self.drop_path1: nn.Module = block.drop_path1
        self.norm2: nn.Module = block.norm2
        self.mlp: Any = block.mlp
        self.drop_path2: nn.Module = block.drop_path2
        self.window = int(block.attn.window_size[0])
        self.shift = self.window // 2 if shifted else 0

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Features of the same shape, channels last."""
        x = x + self.drop_path1(self.attend(self.norm1(x)))
        return in_pieces(self.feed, x)

    def feed(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """The feed-forward network, cell by cell."""
        inner = linear(self.norm2(x), self.mlp.fc1.weight, self.mlp.fc1.bias, "gelu")
        return x + self.drop_path2(linear(inner, self.mlp.fc2.weight, self.mlp.fc2.bias))

    def attend(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Attention within windows; cells of zeros pad the map, and take part."""
        batch, height, width, channels = x.shape
        place, back = self.order(height, width, x.device)
        cells = x.flatten(1, 2)
        if place.numel() > height * width:
            cells = F.pad(cells, [0, 0, 0, 1])  # a cell of zeros, for those beyond the map
        windows = cells.index_select(1, place.flatten()).view(-1, place.shape[1], channels)  # (B V, T, C)
        qkv = linear(windows, self.attn.qkv.weight, self.attn.qkv.bias)  # (B V, T, 3 C)
        q, k, v = qkv.unflatten(2, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias(height, width).to(q.dtype)
        if len(bias) > 1:
            bias = bias.repeat(batch, 1, 1, 1)
        found = F.scaled_dot_product_attention(q, k, v, bias)  # (B V, M, T, C / M)
        found = linear(found.transpose(1, 2).flatten(2), self.attn.proj.weight, self.attn.proj.bias)
        found = found.view(batch, -1, channels)
        return found.index_select(1, back).view(x.shape)

    def order(self, height: int, width: int, device: torch.device) -> tuple[Int[Tensor, "v t"], Int[Tensor, "n"]]:
        """Indices of the cells of each window, ``height * width`` for padding, and the indices that undo it."""
        side, shift = self.window, (self.shift, self.shift)
        rows, columns = -(-height // side), -(-width // side)
        cells = torch.arange(height * width, device=device).view(height, width)
        cells = F.pad(cells, [0, columns * side - width, 0, rows * side - height], value=height * width)
        cells = cells.roll((-self.shift, -self.shift), (0, 1))
        place = cells.view(rows, side, columns, side).transpose(1, 2).flatten(2).flatten(0, 1)
        back = torch.arange(place.numel(), device=device).view(rows, columns, side, side).transpose(1, 2)
        return place, back.reshape(rows * side, -1).roll(shift, (0, 1))[:height, :width].flatten()

    def bias(self, height: int, width: int) -> Float[Tensor, "v m t t"]:
        """Attention bias of each window: relative positions, and -100 between cells that are not neighbours.

        A shifted window at the border also contains cells from the opposite border.
        """
        relative = self.attn._get_rel_pos_bias()  # (1, M, T, T)
        if not self.shift:
            return relative
        side, device = self.window, relative.device
        of_axis = []
        for cells in (height, width):
            padded = -(-cells // side) * side
            place = torch.arange(padded, device=device)
            of_axis.append((place >= padded - side).long() + (place >= padded - self.shift))
        region = of_axis[0][:, None] * 3 + of_axis[1]
        region = region.view(-1, side, len(of_axis[1]) // side, side).transpose(1, 2).flatten(2).flatten(0, 1)  # (V, T)
        apart = region[:, None] != region[:, :, None]
        return relative - 100.0 * apart[:, None]
