"""A question about an image, and the bytes of the answer: rows of COCO results, or an overlay."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from maskkit.data.convert.outlines import trace
from maskkit.geometry import rle
from maskkit.infer.draw import overlay
from maskkit.prediction import Prediction

MaskFormat = Literal["rle", "polygon", "png"]


class Ask(NamedTuple):
    """An image and the parameters of its prediction."""

    image: bytes
    """The encoded image."""
    image_id: int = 1
    score: float | None = None
    """Objects above this score; None: above the model's own threshold."""
    classes: tuple[str, ...] = ()
    """Names of classes; empty means all."""
    tile: int | None = None
    """Height and width of a tile in pixels; None predicts the whole image at once."""
    mask: MaskFormat = "rle"
    overlay: bool = False
    """Whether the answer is a PNG of the image with its objects drawn, instead of rows."""


class Answer(NamedTuple):
    """The answer to one `Ask`."""

    status: int
    """HTTP status."""
    body: bytes
    """JSON, or a PNG."""
    found: int = 0
    """Number of rows."""


def image_answer(prediction: Prediction, ask: Ask, score: float) -> Answer:
    """The answer for an image; ``score`` is the threshold that was used."""
    if ask.overlay:
        assert prediction.image is not None
        return Answer(200, _png(overlay(prediction.image, prediction)), len(prediction))
    rows = prediction.to_coco()
    names = dict(zip(prediction.categories.ids, prediction.categories.names, strict=True))
    height, width = prediction.meta.size
    head: dict[str, Any] = {
        "image": {"id": prediction.meta.image_id, "width": width, "height": height},
        "score": score,
        "names": [names[row["category_id"]] for row in rows],
    }
    if ask.mask != "rle":
        for row in rows:
            if "segmentation" in row:
                row["segmentation"] = _other_form(row["segmentation"], ask.mask)
    # one row per line, with the text of predictions.json: clients can copy the numbers without rounding them
    lines = ",\n".join(map(json.dumps, rows))
    text = f'{json.dumps(head)[:-1]}, "predictions": [\n{lines}\n]}}'
    return Answer(200, text.encode(), len(rows))


def _other_form(mask: rle.Rle, form: MaskFormat) -> Any:
    """A mask as polygons along its pixel edges, or as a PNG of the image's size with 0 and 255, in base64."""
    region, top, left = rle.decode_region(mask)
    if form == "polygon":
        shift = (left, top)
        return [(p.reshape(-1, 2) + shift).reshape(-1).astype(int).tolist() for p in trace(region)]
    dense = np.zeros(mask["size"], bool)
    dense[top : top + region.shape[0], left : left + region.shape[1]] = region
    return {"size": list(mask["size"]), "png": base64.b64encode(_png(dense)).decode("ascii")}


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=3)
    return file.getvalue()
