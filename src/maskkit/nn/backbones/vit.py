"""Plain vision transformers as backbones (ViTDet; Li, Mao, Girshick, He, ECCV 2022), on timm's EVA family.

A plain ViT has one map, of a stride of one patch. To be a backbone of detectors it needs three things, none of which
pre-training knows: most blocks attend within windows, since attention over all of a large image costs too much; the
position embedding is stretched to the size of the image; and a *simple feature pyramid* makes the other strides of
that one map. Blocks and attention are timm's own, under timm's names.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import resample_patch_embed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.eva import Eva, EvaBlock, checkpoint_filter_fn
from torch import Tensor, nn

from maskkit.config import PlainVit
from maskkit.errors import MaskkitError


def is_plain(name: str) -> bool:
    """Whether ``name`` is one of timm's EVA family."""
    return name.startswith(("eva_", "eva02_"))


default_cfgs = generate_default_cfgs(
    {"eva_tiny_patch16_224": {"num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}}
)
"""What timm asks the module of a model for."""


@register_model
def eva_tiny_patch16_224(pretrained: bool = False, **options: Any) -> Eva:
    """EVA's form in a size for two processor cores: width 192, 6 blocks. Nobody publishes weights of it."""
    form = {"patch_size": 16, "embed_dim": 192, "depth": 6, "num_heads": 3, "mlp_ratio": 6144 / 1408}
    return build_model_with_cfg(
        Eva, "eva_tiny_patch16_224", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **(form | options)
    )


class RelativePositions(nn.Module):
    """Attention bias of the distance along each axis, which the query weighs (decomposed; MViTv2, section 4.1).

    The tables hold a row for each distance within a grid of ``side`` x ``side``; for other grids they are stretched.
    """

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(2 * side - 1, channels))
        self.columns = nn.Parameter(torch.zeros(2 * side - 1, channels))

    def forward(self, queries: Float[Tensor, "b n h w c"]) -> Float[Tensor, "b n hw hw"]:
        """Bias from each cell to each cell, for each head."""
        height, width = queries.shape[2:4]
        down = torch.einsum("bnhwc,hkc->bnhwk", queries, _by_distance(self.rows, height))
        right = torch.einsum("bnhwc,wkc->bnhwk", queries, _by_distance(self.columns, width))
        return (down[..., :, None] + right[..., None, :]).flatten(4).flatten(2, 3)


def _by_distance(table: Float[Tensor, "d c"], side: int) -> Float[Tensor, "s s c"]:
    """For each place of a line and each other one the row of the table for their distance."""
    if len(table) != 2 * side - 1:
        table = F.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]


def windows(cells: Float[Tensor, "b h w c"], side: int) -> Float[Tensor, "n s s c"]:
    """The map in windows, row by row, filled up with zeros to its right and below."""
    b, height, width, channels = cells.shape
    cells = F.pad(cells, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = cells.shape[1] // side, cells.shape[2] // side
    return cells.reshape(b, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side, side, channels)


def whole(parts: Float[Tensor, "n s s c"], size: tuple[int, int]) -> Float[Tensor, "b h w c"]:
    """The map of ``size`` (h, w) of its `windows`."""
    side = parts.shape[1]
    rows, columns = (-(-n // side) for n in size)
    cells = parts.view(-1, rows, columns, side, side, parts.shape[3]).transpose(2, 3)
    return cells.reshape(-1, rows * side, columns * side, parts.shape[3])[:, : size[0], : size[1]]


class VitPyramid(nn.Module):
    """timm's ``name`` with maps of ``width`` channels at ``strides``, which are a quarter, half, one and two patches.

    ``options`` change timm's network. Raises `MaskkitError` for a name or a stride that there is none of.
    """

    net: Any
    """timm's network, as `create` makes it."""

    def __init__(self, name: str, strides: Sequence[int], config: PlainVit, **options: Any) -> None:
        super().__init__()
        self.config, self.strides = config, tuple(strides)
        possible = [config.patch * 2**i // 4 for i in range(4)]
        if lacking := [s for s in strides if s not in possible]:
            raise MaskkitError(f"{name} with patches of {config.patch} pixels has strides {possible}, not {lacking}")
        self.net = create(name, config.patch, drop_path_rate=config.drop_path, **options)
        depth = len(self.net.blocks)
        quarters = [max(depth * i // 4, 1) - 1 for i in range(1, 5)]
        self.global_blocks = set(config.global_blocks or quarters if config.window else range(depth))
        if strange := sorted(self.global_blocks - set(range(depth))):
            raise MaskkitError(f"{name} has blocks 0 to {depth - 1}, no {strange}; set --model.vit.global-blocks")
        if config.relative:
            sides = (config.window, config.relative // config.patch)
            self.relative = nn.ModuleList(
                RelativePositions(sides[i in self.global_blocks], block.attn.head_dim)
                for i, block in enumerate(self.net.blocks)
            )
        else:
            self.relative = [None] * depth
        self.levels = nn.ModuleList(_level(self.net.embed_dim, config.width, config.patch / s) for s in self.strides)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c _ _"]]:
        """The maps at ``strides``. Raises `MaskkitError` for images that patches do not tile."""
        last = self.map(images)
        return [level(last) for level in self.levels]

    def map(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """What the last block gives, at the stride of a patch."""
        height, width = images.shape[2:]
        unit = max(self.config.patch, *self.strides)
        if height % unit or width % unit:
            raise MaskkitError(f"an input of {height} x {width} is not tiled by {unit} x {unit}; set --input.size so")
        x = self.net.patch_embed.proj(images).permute(0, 2, 3, 1)  # (B, h, w, C)
        if self.net.pos_embed is not None:
            x = x + stretched(self.net.pos_embed, (x.shape[1], x.shape[2]))
        x = self.net.norm_pre(self.net.pos_drop(x))
        for i, block in enumerate(self.net.blocks):
            x = self._block(i, block, x)
        return x.permute(0, 3, 1, 2)

    def _block(self, i: int, block: EvaBlock, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """timm's block on a map: attention over all of it or within windows, whose filling it sees as official."""
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
            # timm's attention does not hand out its queries: they are computed once more, a twelfth of the block
            bias = relative(queries(attention, x).unflatten(3, (attention.num_heads, -1)).movedim(3, 1))
        return attention(x.flatten(1, 2), rope=rope, attn_mask=bias).view(x.shape)


def create(name: str, patch: int, **options: Any) -> Eva:
    """timm's network without class token, last norm and head, as many patches a side as it was published with.

    Raises `MaskkitError` for a name that timm does not know, or of another form than a plain ViT's.
    """
    try:
        with torch.device("meta"):
            published = timm.create_model(name)
    except RuntimeError as error:  # what timm raises for a name that it does not know
        raise MaskkitError(f"timm has no backbone {name!r} ({error}); timm.list_models('eva*') names them") from None
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
    """The queries of timm's attention, all heads in a row."""
    if attention.qkv is None:
        return attention.q_proj(x)
    return F.linear(x, attention.qkv.weight.chunk(3)[0], attention.q_bias)


def stretched(embedding: Float[Tensor, "1 n c"], size: tuple[int, int]) -> Float[Tensor, "1 h w c"]:
    """A position embedding of a square grid on a grid of ``size`` (h, w), bicubic."""
    side = round(embedding.shape[1] ** 0.5)
    grid = embedding.unflatten(1, (side, side))
    if size == (side, side):
        return grid
    return F.interpolate(grid.permute(0, 3, 1, 2), size, mode="bicubic").permute(0, 2, 3, 1)


def fit(state: dict[str, Tensor], net: Any) -> dict[str, Tensor]:
    """Weights of a pre-training with timm's names as `create` has them, in sizes and patches of ``net``.

    The embedding of the class token's place is dropped with the token. Patches are resampled so that what they say of
    an image is what they said of it before it was enlarged by as much (FlexiViT; Beyer et al., CVPR 2023), and so
    the same of an image of one colour.
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
    """A level of the simple feature pyramid: the map enlarged or shrunken, then a 1x1 and a 3x3 convolution."""
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
