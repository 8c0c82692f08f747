"""Masks from prototypes, as in YOLACT: the two branches, the crop, and the rescoring of YOLACT++.

Bolya, Zhou, Xiao, Lee: "YOLACT: Real-time Instance Segmentation" (ICCV 2019) and "YOLACT++: Better Real-time Instance
Segmentation" (TPAMI 2020).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from maskkit.targets import Target


class Protonet(nn.Sequential):
    """Prototypes from P3: three convolutions, twice the size, one convolution, k masks."""

    def __init__(self, width: int, prototypes: int, norm: bool) -> None:
        def conv3() -> list[nn.Module]:
            normed = [nn.GroupNorm(width // 4, width)] if norm else []
            return [nn.Conv2d(width, width, 3, padding=1), *normed, nn.ReLU()]

        super().__init__(
            *conv3(),
            *conv3(),
            *conv3(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.ReLU(),
            *conv3(),
            nn.Conv2d(width, prototypes, 1),
            nn.ReLU(),
        )


class AnchorHead(nn.Module):
    """The prediction head, one for all levels: a shared convolution, then boxes, classes, coefficients in parallel."""

    def __init__(self, width: int, anchors: int, classes: int, prototypes: int, norm: bool) -> None:
        super().__init__()
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width // 4, width) if norm else nn.Identity()
        self.box = nn.Conv2d(width, anchors * 4, 3, padding=1)
        self.conf = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.mask = nn.Conv2d(width, anchors * prototypes, 3, padding=1)
        self.anchors = anchors

    def forward(self, levels: list[Float[Tensor, "b c _ _"]]) -> tuple[Tensor, Tensor, Tensor]:
        """Box code (B, P, 4), logits (B, P, C) and coefficients (B, P, k) of the P anchors of all levels."""
        branches = (self.box, self.conf, self.mask)
        # the three convolutions read the same map: as one they are faster
        weight, bias = (torch.cat(parts) for parts in zip(*((c.weight, c.bias) for c in branches), strict=True))
        rows: list[list[Tensor]] = [[], [], []]
        for level in levels:
            y = F.conv2d(F.relu(self.norm(self.shared(level))), weight, bias, padding=1)  # (B, a(4 + C + k), h, w)
            for row, part in zip(rows, y.split([c.out_channels for c in branches], 1), strict=True):
                row.append(part.permute(0, 2, 3, 1).reshape(y.shape[0], -1, part.shape[1] // self.anchors))
        loc, conf, mask = (torch.cat(parts, 1) for parts in rows)
        return loc, conf, mask.tanh()


class MaskIouNet(nn.Sequential):
    """YOLACT++: predicts from a cropped soft mask (N, 1, h, w) the IoU it has as an object of each class, (N, K)."""

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = []
        widths = (1, 8, 16, 32, 64, 128)
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], num_classes, 1), nn.ReLU())

    def forward(self, masks: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n k"]:
        """IoU for each class. Grids below 63 x 63 are padded with empty cells, which five strided layers need."""
        missing = [max(0, 63 - side) for side in masks.shape[2:]]
        return super().forward(F.pad(masks, [0, missing[1], 0, missing[0]])).amax((2, 3))


def crop_window(boxes: Float[Tensor, "*n 4"], size: tuple[int, int]) -> Bool[Tensor, "*n h w"]:
    """Cells of a grid of ``size`` (h, w) inside relative ``x1 y1 x2 y2`` boxes, each widened by one cell."""
    height, width = size
    cells = boxes * torch.tensor([width, height, width, height], device=boxes.device)
    low = torch.minimum(cells[..., :2], cells[..., 2:]) - 1
    high = torch.maximum(cells[..., :2], cells[..., 2:]) + 1
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x >= low[..., :1]) & (x < high[..., :1])  # (..., w)
    rows = (y >= low[..., 1:]) & (y < high[..., 1:])  # (..., h)
    return rows[..., :, None] & columns[..., None, :]


def semantic_loss(segm: Float[Tensor, "b c h w"], targets: list[Target]) -> Float[Tensor, ""]:
    """Sum over the images of the cross entropy per cell with the union of each class's masks.

    Images with unknown masks are left out.
    """
    total = segm.sum() * 0
    height, width = segm.shape[2:]
    for logits, target in zip(segm, targets, strict=True):
        if not target.has_mask.all():
            continue
        truth = torch.zeros_like(logits)
        if target.masks is not None and len(target):
            masks = target.masks.dense((height, width)).to(logits.device)
            for label, mask in zip(target.labels, masks, strict=True):
                truth[label] = torch.maximum(truth[label], mask.float())
        total = total + F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / (height * width)
    return total
