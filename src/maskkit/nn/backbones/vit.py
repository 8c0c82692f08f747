"""Plain vision transformers as backbones (ViTDet; Li, Mao, Girshick, He, ECCV 2022), on timm's EVA family.

A plain ViT has one feature map, with the stride of a patch. As a backbone of detectors it needs three things that
pre-training does not have: most blocks attend within windows, since global attention over a large image is too
expensive; the position embedding is resized to the size of the image; and a *simple feature pyramid* derives the other
strides from the one map. Blocks and attention are timm's own, under timm's names.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import resample_patch_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva, EvaBlock, checkpoint_filter_fn
from torch import Tensor, nn

from maskkit.config import PlainVit
from maskkit.errors import MaskkitError
from maskkit.nn.backbones.names import check_name


def is_plain(name: str) -> bool:
    """Whether ``name`` is one of timm's EVA family."""
    return name.startswith(("eva_", "eva02_"))


default_cfgs = generate_default_cfgs(
    {"eva_tiny_patch16_224": {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}}
)
"""Required by timm of a module that registers models."""


@register_model
def eva_tiny_patch16_224(pretrained: bool = False, **options: Any) -> Eva:
    """EVA in a size for two CPU cores: width 192, 6 blocks. There are no published weights."""
    form = {"patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3, "mlp_ratio": 6144 / 1408}
    return build_model_with_cfg(
        Eva, "eva_tiny_patch16_224", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **(form | options)
    )


class RelativePositions(nn.Module):
    """Decomposed relative position bias of attention: query times embedding of the distance along each axis (MViTv2,
    section 4.1).

    The tables have a row for each distance within a grid of ``side`` x ``side``, and are resized for others; see
    `PlainVit.relative_resize`.
    """

    def __init__(self, side: int, channels: int, resize: Literal["linear", "geometric"] = "linear") -> None:
        super().__init__()
        self.resize = resize
        self.rows = nn.Parameter(torch.zeros(2 * side - 1, channels))
        self.columns = nn.Parameter(torch.zeros(2 * side - 1, channels))

    def forward(self, queries: Float[Tensor, "b n h w c"]) -> Float[Tensor, "b n hw hw"]:
        """Bias between every two cells, for each head."""
        height, width = queries.shape[2:4]
        down = torch.einsum("bnhwc,hkc->bnhwk", queries, self._by_distance(self.rows, height))
        right = torch.einsum("bnhwc,wkc->bnhwk", queries, self._by_distance(self.columns, width))
        return (down[..., :, None] + right[..., None, :]).flatten(4).flatten(2, 3)

    def _by_distance(self, table: Float[Tensor, "d c"], side: int) -> Float[Tensor, "s s c"]:
        """For every two positions along an axis the row of the table for their distance."""
        if len(table) != 2 * side - 1:
            if self.resize == "geometric" and not self.training:
                table = torch.from_numpy(geometric_weights(len(table), side)).to(table) @ table
            else:
                table = F.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
        place = torch.arange(side, device=table.device)
        return table[place[:, None] - place + side - 1]


_RATIO = 1.0903078
"""Of neighbouring steps between distances in `geometric_weights`, whatever the sizes are (EVA's detectors)."""


@cache
def geometric_weights(rows: int, side: int) -> Float[np.ndarray, "d rows"]:
    """What each of a table's ``rows`` contributes to the table (2 side - 1 distances) of a grid of ``side`` x ``side``.

    The rows are taken to be at the distances 0, 1, 1 + r, 1 + r + r^2, ... on both sides, and a cubic spline through
    them gives those in between, as in the evaluation of EVA's detectors beyond the size of their training.
    """
    reach = np.cumsum(_RATIO ** np.arange(rows // 2))
    spline = make_interp_spline(np.concatenate([-reach[::-1], [0.0], reach]), np.eye(rows), k=3)
    return spline(np.arange(1.0 - side, side))


def windows(cells: Float[Tensor, "b h w c"], side: int) -> Float[Tensor, "n s s c"]:
    """Partition a map, padded with zeros on the right and below, into windows, row by row."""
    b, height, width, channels = cells.shape
    cells = F.pad(cells, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = cells.shape[1] // side, cells.shape[2] // side
    return cells.reshape(b, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side, side, channels)


def whole(parts: Float[Tensor, "n s s c"], size: tuple[int, int]) -> Float[Tensor, "b h w c"]:
    """Merge `windows` into a map of ``size`` (h, w)."""
    side = parts.shape[1]
    rows, columns = (-(-n // side) for n in size)
    cells = parts.view(-1, rows, columns, side, side, parts.shape[3]).transpose(2, 3)
    return cells.reshape(-1, rows * side, columns * side, parts.shape[3])[:, : size[0], : size[1]]


class VitPyramid(nn.Module):
    """timm's ViT ``name`` and a simple feature pyramid with ``width`` channels at ``strides`` of 1/4, 1/2, 1 and 2
    patches.

    ``options`` are passed on to timm. Raises `MaskkitError` for an unknown name or an impossible stride.
    """

    net: Any
    """timm's network, as `create` makes it."""

    def __init__(self, name: str, strides: Sequence[int], config: PlainVit, **options: Any) -> None:
        super().__init__()
        self.config, self.strides = config, tuple(strides)
        possible = [config.patch * 2**i // 4 for i in range(4)]
        if lacking := [s for s in strides if s not in possible]:
            raise MaskkitError(f"{name} with patches of {config.patch} pixels has strides {possible}, not {lacking}")
        if config.grid:
            options = {"img_size": config.patch * config.grid} | options
        self.net = create(name, config.patch, drop_path_rate=config.drop_path, **options)
        depth = len(self.net.blocks)
        quarters = [max(depth * i // 4, 1) - 1 for i in range(1, 5)]
        self.global_blocks = set(config.global_blocks or quarters if config.window else range(depth))
        if strange := sorted(self.global_blocks - set(range(depth))):
            raise MaskkitError(f"{name} has blocks 0 to {depth - 1}, not {strange}; set --model.vit.global-blocks")
        if config.relative:
            sides = (config.window, config.relative // config.patch)
            self.relative = nn.ModuleList(
                RelativePositions(
                    sides[i in self.global_blocks],
                    block.attn.proj.in_features // block.attn.num_heads,
                    config.relative_resize,
                )
                for i, block in enumerate(self.net.blocks)
            )
        else:
            self.relative = [None] * depth
        self.levels = nn.ModuleList(_level(self.net.embed_dim, config.width, config.patch / s) for s in self.strides)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """The maps at ``strides``. Raises `MaskkitError` for images that are not a multiple of the patch size."""
        last = self.map(images)
        return [level(last) for level in self.levels]

    def map(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """Output of the last block, at the stride of a patch."""
        height, width = images.shape[2:]
        unit = max(self.config.patch, *self.strides)
        if height % unit or width % unit:
            raise MaskkitError(f"the input of {height} x {width} pixels is not a multiple of {unit}; set --input.size")
        x = self.net.patch_embed.proj(images).permute(0, 2, 3, 1)  # (B, h, w, C)
        if self.net.pos_embed is not None:
            x = x + stretched(self.net.pos_embed, (x.shape[1], x.shape[2]))
        x = self.net.norm_pre(self.net.pos_drop(x))
        for i, block in enumerate(self.net.blocks):
            x = self._block(i, block, x)
        return x.permute(0, 3, 1, 2)

    def _block(self, i: int, block: EvaBlock, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """timm's block on a map: attention is global or within windows, padding included, as in the official code."""
        y = block.norm1(x)
        if i in self.global_blocks:
            y = self._attend(i, block.attn, y)
        else:
            parts = windows(y, self.config.window)
            y = whole(self._attend(i, block.attn, parts), (x.shape[1], x.shape[2]))
        x = x + block.drop_path1(y if block.gamma_1 is None else block.gamma_1 * y)
        y = block.mlp(block.norm2(x))
        return x + block.drop_path2(y if block.gamma_2 is None else block.gamma_2 * y)

    def _attend(self, i: int, attention: Any, x: Float[Tensor, "n h w c"]) -> Float[Tensor, "n h w c"]:
        size = (x.shape[1], x.shape[2])
        rope = self.net.rope.get_embed(shape=size) if self.net.rope is not None else None
        bias, relative = None, self.relative[i]
        if relative is not None:
            # timm's attention does not return its queries; computing them again takes a twelfth of the block's time
            bias = relative(queries(attention, x).unflatten(3, (attention.num_heads, -1)).movedim(3, 1))
        return attention(x.flatten(1, 2), rope=rope, attn_mask=bias).view(x.shape)


def create(name: str, patch: int, **options: Any) -> Eva:
    """timm's network without class token, last norm and head, with its published number of patches per side.

    Raises `MaskkitError` for a name that timm does not know, or that is not a pre-norm plain ViT.
    """
    check_name(name, family="eva*")
    with torch.device("meta"):
        published = timm.create_model(name)
    if not isinstance(published, Eva) or not isinstance(published.blocks[0], EvaBlock):
        raise MaskkitError(f"{name} normalises after its layers, which is not supported; take another backbone")
    side = {"img_size": patch * published.patch_embed.grid_size[0]} | options
    bare = {"class_token": False, "num_classes": 0, "global_pool": "avg", "use_fc_norm": False}
    made = timm.create_model(
        name, patch_size=patch, dynamic_img_size=True, use_post_transformer_norm=False, **bare, **side
    )
    assert isinstance(made, Eva)
    return made


def queries(attention: Any, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b d"]:
    """The queries of timm's attention, heads concatenated."""
    if attention.qkv is None:
        return attention.q_proj(x)
    return F.linear(x, attention.qkv.weight.chunk(3)[0], attention.q_bias)


def stretched(embedding: Float[Tensor, "1 n c"], size: tuple[int, int]) -> Float[Tensor, "1 h w c"]:
    """A position embedding of a square grid, resized to ``size`` (h, w), bicubic."""
    side = round(embedding.shape[1] ** 0.5)
    grid = embedding.unflatten(1, (side, side))
    if size == (side, side):
        return grid
    return F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic").permute(0, 2, 3, 1)


def fit(state: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Fit pre-trained weights, with timm's names, to the grid and the patch size of ``net``.

    The position embedding of the class token is dropped with the token. Patch embeddings are resampled so that an
    image enlarged by the same factor keeps its embedding (FlexiViT; Beyer et al., CVPR 2023).
    """
    state = dict(state)
    position, patch = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    own = net.patch_embed.proj.weight.shape
    if position is not None and net.pos_embed is not None and position.shape[2:] == net.pos_embed.shape[2:]:
        side = int(position.shape[1] ** 0.5)
        size = net.patch_embed.grid_size
        kept = position[:, position.shape[1] - side**2 :]
        state["pos_embed"] = stretched(kept.float(), (size[0], size[1])).flatten(1, 2)
    if patch is not None and patch.shape != own and patch.shape[:2] == own[:2]:
        state["patch_embed.proj.weight"] = resample_patch_embed(patch.float(), list(own[2:]))
    return state


def _level(channels: int, width: int, scale: float) -> nn.Sequential:
    """A level of the simple feature pyramid: upsampling or pooling, then a 1x1 and a 3x3 convolution."""
    resize: list[nn.Module] = []
    if scale == 4:
        resize = [_double(channels), LayerNorm2d(channels // 2), nn.GELU(), _double(channels // 2)]
    elif scale == 2:
        resize = [_double(channels)]
    elif scale == 0.5:
        resize = [nn.MaxPool2d(2)]
    last = channels // int(max(scale, 1))
    return nn.Sequential(
        *resize,
        nn.Conv2d(last, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    )


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
