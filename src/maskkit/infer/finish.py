"""From the tensors a network selects to predictions in original pixels. Plain numpy.

The same function ends every path: torch, ONNX Runtime and OpenVINO give the same masks because nothing but arrays
enters here. Masks are turned into run lengths one by one; a dense mask of a whole picture is never made.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

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
    y, below, fy = _samples(rows, len(mask), meta, axis=0)
    x, right, fx = _samples(columns, mask.shape[1], meta, axis=1)
    near = mask[y[0] : y[1]]
    lines = near[below - y[0]] * (1 - fy)[:, None] + near[np.minimum(below + 1, len(mask) - 1) - y[0]] * fy[:, None]
    last = mask.shape[1] - 1
    region = lines[:, right] * (1 - fx) + lines[:, np.minimum(right + 1, last)] * fx > 0.5
    return mask_math.encode_region(region, y[2], x[2], meta.size)


def _samples(
    hit: np.ndarray, cells: int, meta: ImageMeta, axis: int
) -> tuple[tuple[int, int, int], np.ndarray, Float[np.ndarray, "n"]]:
    """Where the original pixels around the cells ``hit`` fall between the cells of one axis of the mask.

    Returns (first cell, one past the last cell, first pixel), the lower neighbour of each pixel and the weight of the
    upper one. Centres beyond the outermost cells take these cells' values, as ``F.interpolate`` does.
    """
    scale = meta.affine[1 - axis, 1 - axis]  # affine speaks of (x, y), pictures of (row, column)
    offset = meta.affine[1 - axis, 2]
    cell = meta.input_size[axis] / cells  # input pixels per cell
    low, high = (hit[0] - 1) * cell * scale + offset, (hit[-1] + 2) * cell * scale + offset
    first, stop = max(int(np.floor(low)), 0), min(int(np.ceil(high)), meta.size[axis])
    if hit[0] == 0:
        first = 0
    if hit[-1] == cells - 1:
        stop = meta.size[axis]
    centre = ((np.arange(first, stop) + 0.5 - offset) / scale) / cell - 0.5
    centre = np.clip(centre, 0, cells - 1).astype(np.float32)
    lower = centre.astype(np.int64)
    return (int(lower.min(initial=0)), cells, first), lower, centre - lower
