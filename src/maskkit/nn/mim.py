"""Masked image modelling as in EVA (Fang et al., CVPR 2023, section 2): the block masks, the student, the loss.

Blocks of patches are masked. The student sees the rest, and at the masked patches predicts the features that a frozen
teacher, CLIP in the paper, has of the whole image there. No labels are used.
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
from maskkit.nn.backbones.names import check_name
from maskkit.nn.backbones.vit import is_plain

_LEAST = 16
"""Patches of the smallest block, as long as so many are still to be masked."""
_ASPECT = 0.3
"""Least ratio of a block's sides."""
_TRIES = 10
"""Attempts at placing a block, per patch to mask, before single patches fill up the rest."""


def block_mask(grid: tuple[int, int], count: int, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A mask of exactly ``count`` patches in blocks (BEiT; Bao et al., ICLR 2022, algorithm 1).

    Blocks of random area and aspect ratio are placed, overlapping, until none fits any more; single patches then make
    up the number, which BEiT sometimes leaves a little short.
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
    """Minus the mean cosine similarity: -1 where every prediction has the direction of its feature."""
    return -F.cosine_similarity(predicted.float(), wanted.float(), dim=1).mean()


class MaskedStudent(nn.Module):
    """timm's plain ViT ``name`` for images of ``size`` x ``size`` pixels, which predicts ``features`` numbers at each
    masked patch.

    ``options`` are passed on to timm. Raises `MaskkitError` for a name outside the EVA family.
    """

    net: Any
    """timm's network."""

    def __init__(self, name: str, size: int, features: int, **options: Any) -> None:
        super().__init__()
        if not is_plain(name):
            raise MaskkitError(f"{name} is not a plain transformer of timm's EVA family; see timm.list_models('eva*')")
        check_name(name, "model", "eva*")
        self.net = timm.create_model(name, img_size=size, num_classes=0, global_pool="token", **options)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.net.embed_dim))
        self.head = nn.Linear(self.net.embed_dim, features)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=0.015)
        nn.init.zeros_(self.head.bias)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.net.patch_embed.grid_size
        return rows, columns

    def forward(self, images: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "m d"]:
        """Predicted features of the masked patches, image by image."""
        return self.head(self.tokens(images, mask)[:, 1:][mask])

    def tokens(self, images: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n+1 c"]:
        """Tokens after the last norm, the class token first."""
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
