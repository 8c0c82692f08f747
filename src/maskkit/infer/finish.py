"""From the tensors a network selects to predictions in original pixels. Plain numpy.

The same function ends every path: torch, ONNX Runtime and OpenVINO give the same masks because nothing but arrays
enters here. Masks are turned into run lengths one by one; a dense mask of a whole picture is never made.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from maskkit import masks as mask_math
from maskkit.types import Categories, ImageMeta, Instances, Masks, Prediction


def finish(
    selected: Mapping[str, np.ndarray], metas: Sequence[ImageMeta], categories: Categories, score: float = 0.0
) -> list[Prediction]:
    """Predictions of the pictures ``metas`` from the fields of `maskkit.models.base.Selected` as arrays.

    Objects with a score above ``score`` are kept, best first. A mask covers the network's whole input, padding
    included, and is cut at 0.5 after bilinear interpolation at the centres of the original pixels.
    """
    predictions = []
    for b, meta in enumerate(metas):
        scores = selected["scores"][b]
        kept = np.flatnonzero(scores > score)
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        height, width = meta.input_size
        boxes = meta.to_original(selected["boxes"][b, kept] * np.array([width, height, width, height], np.float32))
        rles = [_to_original(mask, meta) for mask in selected["masks"][b, kept]]
        mask_scores = selected["mask_scores"][b, kept]
        predictions.append(
            Prediction(
                meta,
                categories,
                Instances(
                    boxes,
                    selected["labels"][b, kept].astype(np.int64),
                    scores[kept].astype(np.float32),
                    Masks(meta.size, rles=rles),
                    None if np.array_equal(mask_scores, scores[kept]) else mask_scores.astype(np.float32),
                ),
            )
        )
    return predictions


def _to_original(mask: Float[np.ndarray, "h w"], meta: ImageMeta) -> mask_math.Rle:
    """Run lengths, at the original size, of a mask of probabilities over the network's input."""
    likely = mask > 0.5  # a value between neighbours exceeds 0.5 only where one of them does
    rows, columns = np.flatnonzero(likely.any(1)), np.flatnonzero(likely.any(0))
    if len(rows) == 0:
        return mask_math.empty(meta.size)
    top, below, fy = _samples(rows, mask.shape[0], meta, axis=0)
    left, right, fx = _samples(columns, mask.shape[1], meta, axis=1)
    above, before = (np.minimum(i + 1, n - 1) for i, n in zip((below, right), mask.shape, strict=True))
    lines = mask[below] * (1 - fy)[:, None] + mask[above] * fy[:, None]  # (H', w)
    region = lines[:, right] * (1 - fx) + lines[:, before] * fx > 0.5  # (H', W')
    return mask_math.encode_region(region, top, left, meta.size)


def _samples(
    hit: np.ndarray, cells: int, meta: ImageMeta, axis: int
) -> tuple[int, Int[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Where the original pixels around the cells ``hit`` fall between the ``cells`` of one axis of the mask.

    Returns the first pixel, the lower neighbour of each pixel and the weight of the upper one. Centres beyond the
    outermost cells take these cells' values, as ``F.interpolate`` does.
    """
    scale, offset = meta.affine[1 - axis, 1 - axis], meta.affine[1 - axis, 2]  # it speaks of (x, y), pictures of (y, x)
    cell = meta.input_size[axis] / cells  # input pixels per cell
    first, stop = 0, meta.size[axis]
    if hit[0] > 0 and hit[-1] < cells - 1:
        low, high = sorted((edge * cell * scale + offset) for edge in (hit[0] - 1, hit[-1] + 2))
        first, stop = max(int(np.floor(low)), 0), min(int(np.ceil(high)), stop)
    centre = (np.arange(first, stop) + 0.5 - offset) / (scale * cell) - 0.5
    centre = np.clip(centre, 0, cells - 1).astype(np.float32)
    lower = centre.astype(np.int64)
    return first, lower, centre - lower
