"""Losses that several methods share; first of all, how a mask is learnt from a box alone.

A box says two things about the mask inside it (BoxInst; Tian, Shen, Wang, Chen, CVPR 2021). The *projection*: seen from
the side and from above, the mask is exactly as long as the box. And, since colours change at the border of an object,
the *pairwise* term: neighbours of one colour are both object or both background, whichever it is. Any method whose loss
has the logits of whole-image masks can learn from boxes by `mask_loss_from_boxes`.
"""

from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskkit.config import BoxOnly
from maskkit.targets import Batch

HALF = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Offsets (rows, columns) to half of the eight neighbours: the other half are the same pairs seen from the far end."""

OUTSIDE = -30.0
"""A logit that stands for certain background."""


R = TypeVar("R")


class FromBoxes(NamedTuple):
    """Weighted terms of `mask_loss_from_boxes`."""

    projection: Float[Tensor, "n"]
    """For each object, 0 to 2 times its weight."""
    pairwise: Float[Tensor, ""]
    """Mean over the pairs of all objects, warm-up included."""


def in_fp32(raw: R) -> R:
    """A raw output with all its floating-point tensors in fp32, however deep they lie in it."""
    if isinstance(raw, Tensor):
        return raw.float() if raw.is_floating_point() else raw  # type: ignore[return-value]
    assert isinstance(raw, tuple)
    parts = [in_fp32(part) for part in raw]
    return type(raw)(*parts) if hasattr(raw, "_fields") else type(raw)(parts)


def processes() -> int:
    """How many processes train together, each on its share of a batch; 1 outside of such a training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def normaliser(count: Tensor | float, least: float = 1.0) -> Tensor | float:
    """What a sum over this process's share of a batch is divided by: the ``count`` of the whole batch, ``least`` at
    least, per process.

    The gradients of processes are averaged. Divided by this, and not by their own counts, they are those of one process
    with the whole batch, however objects are spread. All processes have to call it, in the same order: a loss may not
    leave out a term because it has nothing to say about its own images.
    """
    world = processes()
    if world == 1:
        return count.clamp(min=least) if isinstance(count, Tensor) else max(count, least)
    where = torch.device("cpu") if dist.get_backend() == "gloo" else torch.accelerator.current_accelerator()
    total = torch.as_tensor(count, dtype=torch.float64, device=where).detach().clone()
    dist.all_reduce(total)
    return max(float(total), least) / world


def dice_loss(probabilities: Float[Tensor, "n *d"], truth: Float[Tensor, "n *d"], epsilon: float) -> Float[Tensor, "n"]:
    """``1 - 2 sum(pt) / (sum(p^2) + sum(t^2) + epsilon)`` of each row (V-Net; Milletari et al., 2016)."""
    p, t = probabilities.flatten(1), truth.flatten(1)
    return 1 - 2 * (p * t).sum(1) / (p.square().sum(1) + t.square().sum(1) + epsilon)


class ImageColours(NamedTuple):
    """What masks are learned from where only boxes are known."""

    pixels: Float[Tensor, "b 3 h w"]
    """RGB on 0..255 of the network's input."""
    visible: Bool[Tensor, "b h w"]
    """Pixels whose colour counts: not the padding."""
    progress: float
    """Share of the training that is done, 0 to 1."""

    @classmethod
    def of(cls, batch: Batch, skip_bottom: int = 0) -> "ImageColours":
        """The colours of a batch, without the last ``skip_bottom`` rows of each original image."""
        visible = batch.valid
        for seen, rows, meta in zip(visible, batch.sizes[:, 0].tolist(), batch.metas, strict=True):
            skipped = int(skip_bottom * rows / meta.size[0])
            seen[rows - skipped : rows] = False
        return cls(batch.pixels(), visible, batch.progress)


def mask_loss_from_boxes(
    logits: Float[Tensor, "n h w"],
    boxes: Float[Tensor, "n 4"],
    image: Int[Tensor, "n"],
    batch: Batch,
    config: BoxOnly,
) -> FromBoxes:
    """`mask_loss_from_colours` of the images of a batch."""
    if len(logits) == 0:
        normaliser(0)  # that of `pairwise_loss`, which another process may have called
        return FromBoxes(logits.sum((1, 2)), logits.sum() * 0)
    return mask_loss_from_colours(logits, boxes, image, ImageColours.of(batch, config.skip_bottom), config)


def mask_loss_from_colours(
    logits: Float[Tensor, "n h w"],
    boxes: Float[Tensor, "n 4"],
    image: Int[Tensor, "n"],
    colours: ImageColours,
    config: BoxOnly,
) -> FromBoxes:
    """What is wrong with masks of which only the boxes are known (BoxInst, equations 5 and 9).

    ``logits`` lie on a grid over the whole input; ``boxes`` are ``x1 y1 x2 y2`` in input pixels; ``image`` says which
    image of ``colours`` each object belongs to.
    """
    if len(logits) == 0:
        normaliser(0)  # that of `pairwise_loss`, which another process may have called
        return FromBoxes(logits.sum((1, 2)), logits.sum() * 0)
    height, width = colours.pixels.shape[2:]
    inside = box_cells(boxes, (height, width), (logits.shape[1], logits.shape[2]))  # (N, h, w)
    soft = logits.sigmoid()
    sides = [dice_loss(soft.amax(axis), inside.any(axis).float(), 1e-5) for axis in (1, 2)]
    ramp = min(colours.progress / config.warmup, 1.0) if config.warmup > 0 else 1.0
    pairwise = pairwise_loss(logits, inside, image, colours, config)
    return FromBoxes(config.projection * (sides[0] + sides[1]), config.pairwise * ramp * pairwise)


def pairwise_loss(
    logits: Float[Tensor, "n h w"],
    inside: Bool[Tensor, "n h w"],
    image: Int[Tensor, "n"],
    colours: ImageColours,
    config: BoxOnly,
) -> Float[Tensor, ""]:
    """Mean of `disagreement` over the pairs of neighbours of like colour of which one lies in the object's box.

    A pair with both ends in the box counts twice, as it does where each cell looks at all its eight neighbours.
    """
    size = (logits.shape[1], logits.shape[2])
    lab, seen = mean_lab(colours, size), visible_cells(colours, size)
    total, count = logits.sum() * 0, 0
    for offset in HALF:
        like = similarity(lab, offset, config.dilation) >= config.threshold  # (B, h', w')
        (inside_a, inside_b), (seen_a, seen_b) = (neighbours(x, offset, config.dilation) for x in (inside, seen))
        # the far end of a pair has to be seen, the near one to lie in the box
        forth, back = (like & seen_b)[image] & inside_a, (like & seen_a)[image] & inside_b  # (N, h', w')
        a, b = neighbours(logits, offset, config.dilation)
        for chosen in (forth, back):
            wrong = disagreement(a[chosen], b[chosen])
            total, count = total + wrong.sum(), count + len(wrong)
    return total / normaliser(count)


def disagreement(a: Float[Tensor, "*n"], b: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """``-log(p q + (1 - p)(1 - q))`` of the probabilities with logits ``a`` and ``b``: they shall be alike."""
    both, neither = F.logsigmoid(a) + F.logsigmoid(b), F.logsigmoid(-a) + F.logsigmoid(-b)
    return -torch.logaddexp(both, neither)


def neighbours(cells: Tensor, offset: tuple[int, int], dilation: int) -> tuple[Tensor, Tensor]:
    """Views of the cells (..., h, w) that have a neighbour at ``offset`` times ``dilation``, and of the neighbours."""
    down, right = offset[0] * dilation, offset[1] * dilation
    height, width = cells.shape[-2:]
    rows, columns = max(height - down, 0), max(width - abs(right), 0)
    left = max(-right, 0)
    near = cells[..., :rows, left : left + columns]
    return near, cells[..., down : down + rows, left + right : left + right + columns]


def similarity(lab: Float[Tensor, "*b 3 h w"], offset: tuple[int, int], dilation: int) -> Float[Tensor, "*b _ _"]:
    """``exp(-|difference| / 2)`` of the CIE Lab colours of neighbours (BoxInst, equation 8)."""
    a, b = neighbours(lab, offset, dilation)
    return torch.exp(-0.5 * torch.linalg.vector_norm(a - b, dim=-3))


@torch.no_grad()
def mean_lab(colours: ImageColours, size: tuple[int, int]) -> Float[Tensor, "b 3 h w"]:
    """CIE Lab of the mean colour of each cell of a grid over the input, in whole steps of RGB as BoxInst has it."""
    mean = F.adaptive_avg_pool2d(colours.pixels, size)
    return lab_of_rgb((mean + 1e-3).floor().clamp(0, 255) / 255)  # normalising and back may take a little from a byte


@torch.no_grad()
def visible_cells(colours: ImageColours, size: tuple[int, int]) -> Bool[Tensor, "b h w"]:
    """Cells of a grid over the input whose centre pixel is visible."""
    y, x = (
        _centres(n, cells, colours.visible.device) for n, cells in zip(colours.visible.shape[1:], size, strict=True)
    )
    return colours.visible[:, y[:, None], x]


def box_cells(boxes: Float[Tensor, "n 4"], size: tuple[int, int], grid: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """Cells of a ``grid`` (h, w) over an input of ``size`` (H, W) whose centre pixel is touched by each box."""
    low, high = boxes[:, :2].floor(), boxes[:, 2:].floor()
    y, x = (_centres(n, cells, boxes.device) for n, cells in zip(size, grid, strict=True))
    columns = (x >= low[:, :1]) & (x <= high[:, :1])  # (N, w)
    rows = (y >= low[:, 1:]) & (y <= high[:, 1:])  # (N, h)
    return rows[:, :, None] & columns[:, None]


def lab_of_rgb(rgb: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """CIE L*a*b* (D65, two-degree observer) of sRGB on 0..1; IEC 61966-2-1 and CIE 15."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    white = rgb.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,...jhw->...ihw", to_xyz / white[:, None], linear)
    x, y, z = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -3)


def _centres(pixels: int, cells: int, device: torch.device) -> Int[Tensor, "n"]:
    """The pixel at the centre of each cell."""
    return ((torch.arange(cells, device=device) + 0.5) * pixels / cells).long()
