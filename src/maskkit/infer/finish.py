"""From the tensors a network selects to predictions in original pixels. Plain numpy.

The same function ends every path: torch, ONNX Runtime and OpenVINO give the same masks because nothing but arrays
enters here. Masks are turned into run lengths one by one; a dense mask of a whole picture is never made.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
        y, x = (_axis(cells, meta, axis) for axis, cells in enumerate(selected["masks"].shape[2:]))
        rles = [_to_original(mask, y, x, meta.size) for mask in selected["masks"][b, kept]]
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


class _Axis(NamedTuple):
    """How the original pixels of one axis lie between the cells of a mask."""

    lower: Int[np.ndarray, "n"]
    """The cell at or below the centre of each pixel."""
    upper: Int[np.ndarray, "n"]
    weight: Float[np.ndarray, "n"]
    """Share of the upper cell; a centre beyond the outermost cells takes their values, as in ``F.interpolate``."""

    def around(self, hit: Int[np.ndarray, "k"]) -> slice:
        """The pixels that cells between the first and the last of ``hit`` contribute to."""
        pixels = np.flatnonzero((self.upper >= hit[0]) & (self.lower <= hit[-1]))
        return slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0)


def _axis(cells: int, meta: ImageMeta, axis: int) -> _Axis:
    scale, offset = meta.affine[1 - axis, [1 - axis, 2]]  # the affine speaks of (x, y), pictures of (y, x)
    cell = meta.input_size[axis] / cells  # input pixels per cell
    centre = (np.arange(meta.size[axis]) + 0.5 - offset) / (scale * cell) - 0.5
    centre = np.clip(centre, 0, cells - 1).astype(np.float32)
    lower = centre.astype(np.int64)
    return _Axis(lower, np.minimum(lower + 1, cells - 1), centre - lower)


def _to_original(mask: Float[np.ndarray, "h w"], y: _Axis, x: _Axis, size: tuple[int, int]) -> mask_math.Rle:
    """Run lengths, at the original size, of a mask of probabilities over the network's input."""
    likely = mask > 0.5  # a value between neighbours exceeds 0.5 only where one of them does
    rows, columns = np.flatnonzero(likely.any(1)), np.flatnonzero(likely.any(0))
    if len(rows) == 0:
        return mask_math.empty(size)
    tall, wide = y.around(rows), x.around(columns)
    first = max(rows[0] - 1, 0)
    near = mask[first : rows[-1] + 2]  # (h', w)
    left, right, fx = x.lower[wide], x.upper[wide], x.weight[wide]
    lines = near[:, left] * (1 - fx) + near[:, right] * fx  # (h', W'): the few rows first, gathering columns is slow
    above, below, fy = y.lower[tall] - first, y.upper[tall] - first, y.weight[tall, None]
    region = lines[above] * (1 - fy) + lines[below] * fy > 0.5  # (H', W')
    return mask_math.encode_region(region, tall.start, wide.start, size)
