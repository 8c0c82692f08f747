"""Masked image modelling as EVA does it (Fang et al., CVPR 2023, section 2): what is masked, who predicts it, the loss.

Blocks of patches are masked, the student sees what is left, and says at the masked places what a frozen teacher, CLIP
in the paper, says of the whole image there. No label has a part in it.
"""

import math
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maskkit.errors import MaskkitError
from maskkit.nn.backbones.vit import is_plain

_LEAST = 16
"""Patches of the smallest block, where so many are left to be masked."""
_ASPECT = 0.3
"""Least ratio of a block's sides."""
_TRIES = 10
"""Blocks that are tried before single patches fill up what is missing."""


def block_mask(grid: tuple[int, int], count: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A mask of exactly ``count`` patches in blocks (BEiT; Bao et al., ICLR 2022, algorithm 1).

    Blocks of random areas and aspects are laid over each other until no more fits; single patches make up the number,
    which BEiT leaves a little short at times.
    """
    height, width = grid
    mask = np.zeros(grid, dtype=bool)
    for _ in range(_TRIES * count):
        left = count - int(mask.sum())
        if left == 0:
            return mask
        area = rng.uniform(min(_LEAST, left), left)
        aspect = math.exp(rng.uniform(math.log(_ASPECT), -math.log(_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < h <= height and 0 < w <= width):
            continue
        top, start = rng.integers(height - h + 1), rng.integers(width - w + 1)
        block = mask[top : top + h, start : start + w]
        if 0 < h * w - int(block.sum()) <= left:
            block[:] = True
    free = np.flatnonzero(~mask)
    mask.flat[rng.choice(free, count - int(mask.sum()), replace=False)] = True
    return mask


def cosine_loss(predicted: Float[Tensor, "m d"], wanted: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Minus the mean cosine similarity: -1 where every prediction points to its feature, of whatever length."""
    return -F.cosine_similarity(predicted.float(), wanted.float(), dim=1).mean()


class MaskedStudent(nn.Module):
    """timm's plain ViT ``name`` for images of ``size`` x ``size``, that predicts ``features`` at masked places.

    ``options`` change timm's network. Raises `MaskkitError` for a name outside of the EVA family.
    """

    net: Any
    """timm's network."""

    def __init__(self, name: str, size: int, features: int, **options: Any) -> None:
        super().__init__()
        if not is_plain(name):
            raise MaskkitError(f"{name} is no plain transformer of timm's EVA family; timm.list_models('eva*')")
        try:
            net = timm.create_model(name, img_size=size, num_classes=0, global_pool="token", **options)
        except RuntimeError as error:  # what timm raises for a name that it does not know
            raise MaskkitError(f"timm has no model {name!r} ({error}); timm.list_models('eva*') names them") from None
        self.net = net
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.net.embed_dim))
        self.head = nn.Linear(self.net.embed_dim, features)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.015)
        nn.init.zeros_(self.head.bias)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        rows, columns = self.net.patch_embed.grid_size
        return rows, columns

    def forward(self, images: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "m d"]:
        """Features of the masked patches, image by image."""
        return self.head(self.tokens(images, mask)[:, 1:][mask])

    def tokens(self, images: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n+1 c"]:
        """What the last norm gives, the class token first."""
        net = self.net
        x = torch.where(mask[..., None], self.mask_token, net.patch_embed(images))  # (B, N, C)
        x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], 1)
        if net.pos_embed is not None:
            x = x + net.pos_embed
        x = net.norm_pre(net.pos_drop(x))
        rope = net.rope.get_embed() if net.rope is not None else None
        for block in net.blocks:
            x = block(x, rope=rope)
        return net.norm(x)
