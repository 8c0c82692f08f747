"""Test-time augmentation of semantic models: scales, horizontal flips, sliding windows, and a CRF at the end.

`probabilities` is a function over a model's logits: it averages class probabilities, or logits, over all augmented
images.
`sum_over_scales` sums any maps of one image at its own resolution.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from maskkit.config import InputConfig, Tta
from maskkit.data.loader import normalise
from maskkit.nn.crf import CrfConfig, mean_field

Logits = Callable[[Float[Tensor, "b 3 h w"]], Float[Tensor, "b k _ _"]]
"""From normalised images to class logits at any resolution."""


def probabilities(
    logits_of: Logits, images: Float[Tensor, "b 3 h w"], tta: Tta, input: InputConfig
) -> Float[Tensor, "b k h w"]:
    """Class probabilities of normalised ``images`` at their own size, averaged as ``tta`` says; or mean logits."""
    size = (images.shape[2], images.shape[3])
    base = tta.base or max(size)
    total = images.new_zeros(())
    for scale in tta.scales:
        factor = round(base * scale) / max(size)
        scaled = [max(1, round(side * factor)) for side in size]
        resized = F.interpolate(images, size=scaled, mode="bilinear")
        total = total + F.interpolate(_windows(logits_of, resized, tta), size=size, mode="bilinear")
    mean = total / len(tta.scales)
    if not tta.crf:
        return mean
    mean = mean.softmax(1) if tta.average == "logits" else mean
    std, shift = (mean.new_tensor(v)[:, None, None] for v in (input.std, input.mean))
    pixels = (images * std + shift).clamp(0, 255)
    return torch.stack([mean_field(p, x, CrfConfig()) for p, x in zip(mean, pixels, strict=True)])


def _windows(logits_of: Logits, images: Float[Tensor, "b 3 h w"], tta: Tta) -> Float[Tensor, "b k h w"]:
    """Class probabilities, or logits, averaged where windows overlap.

    Images smaller than a window are padded with the mean colour; for logits the window is cut to the image instead.
    """
    if tta.window is None:
        return _mirrored(logits_of, images, tta)
    height, width = images.shape[2:]
    window = tta.window if tta.average == "probabilities" else (min(tta.window[0], height), min(tta.window[1], width))
    missing = [max(want - have, 0) for want, have in zip(window, (height, width), strict=True)]
    top, left = missing[0] // 2, missing[1] // 2
    padded = F.pad(images, [left, missing[1] - left, top, missing[0] - top])
    total, count = images.new_zeros(()), images.new_zeros(1, 1, *padded.shape[2:])
    for y, x in window_corners((padded.shape[2], padded.shape[3]), window, tta.overlap):
        rows, columns = slice(y, y + window[0]), slice(x, x + window[1])
        found = _mirrored(logits_of, padded[:, :, rows, columns], tta)
        if total.ndim == 0:
            total = images.new_zeros(len(images), found.shape[1], *padded.shape[2:])
        total[:, :, rows, columns] += found
        count[:, :, rows, columns] += 1
    return (total / count)[:, :, top : top + height, left : left + width]


def _mirrored(logits_of: Logits, images: Float[Tensor, "b 3 h w"], tta: Tta) -> Float[Tensor, "b k h w"]:
    """What ``tta`` averages at the size of ``images``; with ``tta.flip`` its mean with that of the flipped images."""

    def read(pixels: Tensor) -> Tensor:
        logits = F.interpolate(logits_of(pixels).float(), size=images.shape[2:], mode="bilinear")
        return logits if tta.average == "logits" else logits.softmax(1)

    return (read(images) + read(images.flip(3)).flip(3)) / 2 if tta.flip else read(images)


def sum_over_scales(
    score: Callable[[Tensor], Tensor],
    image: UInt8[Tensor, "3 h w"],
    input: InputConfig,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
    base: int | None = None,
) -> Float[Tensor, "c h w"]:
    """Sum of the maps that ``score`` returns for the image at each of ``scales``, as it is and flipped.

    ``score`` maps normalised pixels on ``device`` to maps (1, C, h, w). At scale 1 the longer side has ``base`` pixels,
    or as many as that of ``input``; nothing is padded. The result has the image's own size.
    """
    height, width = image.shape[1:]
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    factor = (base or max(input.size)) / max(height, width)
    total = torch.zeros((), device=device)
    for scale in scales:
        size = [max(1, round(side * factor * scale)) for side in (width, height)]
        resized = np.array(pixels.resize((size[0], size[1]), Image.Resampling.BICUBIC))
        scaled = normalise(torch.from_numpy(resized).permute(2, 0, 1), input)[None].to(device)
        for mirrored in (False, True):
            found = score(scaled.flip(3) if mirrored else scaled)
            found = F.interpolate(found, size=(height, width), mode="bilinear")[0]
            total = total + (found.flip(2) if mirrored else found)
    return total


def window_corners(size: tuple[int, int], window: Sequence[int], overlap: float) -> Iterator[tuple[int, int]]:
    """Top left corners (y, x) of windows that cover ``size`` (H, W); the last ones are moved back inside."""
    starts = []
    for side, length in zip(size, window, strict=True):
        step = math.ceil(round(length * (1 - overlap), 6))  # 129 * (1 - 1/3) is more than 86 in floats
        count = -(-(side - length) // step) + 1
        starts.append([min(i * step, side - length) for i in range(count)])
    yield from ((y, x) for y in starts[0] for x in starts[1])
