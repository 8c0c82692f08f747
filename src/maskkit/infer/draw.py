"""Drawing of predictions over their images: masks, boxes, names and scores. Pillow, numpy and scipy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskkit.data.images import read_pixels
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.geometry import rle
from maskkit.geometry.paint import Region, class_colours, paint_classes, paint_objects, paint_segments

if TYPE_CHECKING:
    from maskkit.prediction import Instances, Prediction

# dark enough for white text; neighbours in the list differ in hue
_COLOURS = np.array(
    [(22, 104, 220), (212, 56, 13), (56, 158, 14), (146, 84, 222), (196, 29, 127),
     (8, 151, 156), (173, 104, 0), (207, 19, 34), (29, 57, 196), (91, 140, 0)], np.uint8,
)  # fmt: skip

_TEXT_SHARE = 0.12
"""Largest share of the image that labels may cover."""
_NAMED_SHARE = 0.01
"""Smallest share of the image for which a class of a label map is named."""
_LONGEST = 40
"""Largest number of characters of a label."""


def overlay(image: UInt8[np.ndarray, "h w 3"], prediction: Prediction) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image with its objects drawn over it, each in its own colour; lines and text scale with the image.

    When there are many objects, only the largest are labelled, so that text does not hide the image. For a label map
    all classes are tinted, for a panoptic image all segments, and the larger ones are named.
    """
    names = prediction.categories.names
    if prediction.semantic is not None:
        return _name_regions(paint_classes(image, prediction.semantic, len(names)), prediction.semantic, names)
    if prediction.panoptic is not None:
        ids, segments = prediction.panoptic.ids, prediction.panoptic.segments
        order = np.zeros(1 + max((s.id for s in segments), default=0), np.int64)
        order[[s.id for s in segments]] = np.arange(1, len(segments) + 1)
        numbers, labels = order[ids], [s.label for s in segments]
        tinted = paint_segments(image, numbers, labels, len(names))
        return _name_regions(tinted, numbers, ["", *(names[label] for label in labels)])
    if prediction.instances is None or len(prediction.instances) == 0:
        return image.copy()
    return _overlay_objects(image, prediction.instances, names)


def _overlay_objects(
    image: UInt8[np.ndarray, "h w 3"], found: Instances, names: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    boxes, side = np.asarray(found.boxes, np.float64), min(image.shape[:2])
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")  # small objects on top of large ones
    texts = [f"{names[int(found.labels[i])]} {found.scores[i]:.2f}" for i in order.tolist()]
    font, line = max(11, round(side / 40)), max(1, round(side / 300))
    areas = (np.array([text_width(text, font) for text in texts]) + font / 2) * 1.5 * font
    labelled = np.cumsum(areas) <= _TEXT_SHARE * image.shape[0] * image.shape[1]
    rles = found.masks.rle() if found.masks is not None else []
    masks = (rle.decode_region(rles[i]) for i in order.tolist() if rles)
    shown = [text if there else "" for text, there in zip(texts, labelled, strict=True)]
    return draw_objects(image, masks, boxes[order], _COLOURS[order % len(_COLOURS)], shown, font, line)


def draw_objects(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Iterable[Region],
    boxes: Float[np.ndarray, "n 4"],
    colours: UInt8[np.ndarray, "n 3"],
    texts: Sequence[str],
    font_size: int = 11,
    line: int = 1,
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image with N objects: mask, box (``x1 y1 x2 y2``, pixels) and label of each, later ones on top.

    ``masks`` may be an iterator, so that one mask is dense at a time, or empty. A label is placed next to its box where
    it covers other labels least; an empty text draws no label. ``line`` is the width of lines in pixels.
    """
    canvas = Image.fromarray(paint_objects(image, masks, colours, contour=line))
    pen, font = ImageDraw.Draw(canvas), _font(font_size)
    inks = [tuple(colour) for colour in np.asarray(colours).tolist()]
    for (x1, y1, x2, y2), ink in zip(np.asarray(boxes).round().astype(int).tolist(), inks, strict=True):
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=ink, width=line)
    pad = max(2, font_size // 4)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (font_size, 2)
    taken = np.zeros((0, 4))
    for box, ink, text in zip(np.asarray(boxes, float), inks, map(one_line, texts), strict=True):
        if not text:
            continue
        size = (pen.textlength(text, font) + 2 * pad, ascent + descent + pad)
        place = _place(box, size, canvas.size, taken)
        taken = np.vstack([taken, place])
        pen.rectangle((*place[:2], *(place[2:] - 1)), fill=ink)
        pen.text((place[0] + pad, place[1] + pad / 2), text, "white", font)
    return np.asarray(canvas)


def _place(
    box: Float[np.ndarray, "4"], size: tuple[float, float], canvas: tuple[int, int], taken: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "4"]:
    """The box of a label of ``size`` (width, height): the candidate next to ``box`` that covers ``taken`` least.

    Candidates in order: above the box and inside it at the top, left and right; below it and inside it at the bottom.
    """
    (x1, y1, x2, y2), (width, height) = box, size
    columns, rows = (x1, x2 - width), ((y1 - height, y1), (y2, y2 - height))
    corners = np.array([(x, y) for pair in rows for x in columns for y in pair])  # (8, 2)
    corners = np.clip(corners, 0, np.maximum(np.subtract(canvas, size), 0)).round()
    places = np.concatenate([corners, corners + np.ceil(size)], 1)  # (8, 4)
    shared = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
    return places[shared.clip(min=0).prod(2).sum(1).argmin()]


def _name_regions(
    image: UInt8[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"], names: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the name of each larger region written where it is thickest; ``labels`` index ``names``."""
    canvas = Image.fromarray(image)
    pen, font = ImageDraw.Draw(canvas), _font(max(11, round(min(image.shape[:2]) / 32)))
    areas = np.bincount(labels.ravel(), minlength=len(names))
    step = max(1, max(labels.shape) // 256)  # fewer pixels are enough to find the place
    coarse = labels[::step, ::step]
    for label in np.flatnonzero(areas[: len(names)] >= _NAMED_SHARE * labels.size).tolist():
        inside = np.pad(coarse == label, 1)  # the border of the image is a contour too
        depth = np.asarray(ndimage.distance_transform_cdt(inside))[1:-1, 1:-1]
        y, x = divmod(int(depth.argmax()), depth.shape[1])
        text = one_line(names[label])
        pen.text((x * step, y * step), text, "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def one_line(text: str) -> str:
    """A name as one line of text: shortened, without line breaks and lone surrogates."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[3 - _LONGEST // 2 :]}"


def text_width(text: str, font_size: int = 11) -> float:
    """Width in pixels of a label's text."""
    return _font(font_size).getlength(one_line(text))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def save_labels(prediction: Prediction, path: Path) -> Path:
    """Write the label map as a PNG whose values are class numbers 0..K-1, with the colours of overlays."""
    assert prediction.semantic is not None
    image = Image.fromarray(prediction.semantic)
    colours = class_colours(len(prediction.categories)).tobytes()
    image.putpalette(colours.ljust(3 * 256, b"\xff"))  # with a shorter palette Pillow would clip 255
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def save(prediction: Prediction, path: Path) -> Path:
    """Draw ``prediction`` over its image and write it to ``path``, whose extension chooses the format.

    Raises `DataError` when the image cannot be read again or the extension is not that of an image format.
    """
    image = prediction.image if prediction.image is not None else read_pixels(prediction.meta.path)
    write_image(overlay(image, prediction), path)
    return path


def write_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write RGB pixels atomically. Raises `DataError` when the extension is not that of an image format."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"{path}: not an image format; use the extension .jpg or .png")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format=kind, quality=92)
