"""Drawing of predictions over their images: masks, boxes, names and scores. Pillow, numpy and scipy only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskkit.data.images import LARGE, read_reduced
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.geometry import rle
from maskkit.geometry.paint import Region, class_colours, paint_classes, paint_objects, paint_segments
from maskkit.geometry.resample import strips
from maskkit.infer.fonts import fitted
from maskkit.prediction import Instances, Masks, Panoptic, Prediction
from maskkit.terminal import printable

# dark enough for white text; neighbours in the list differ in hue
_COLOURS = np.array(
    [(22, 104, 220), (212, 56, 13), (56, 158, 14), (146, 84, 222), (196, 29, 127),
     (8, 151, 156), (173, 104, 0), (207, 19, 34), (29, 57, 196), (91, 140, 0)], np.uint8,
)  # fmt: skip

_TEXT_SHARE = 0.12
"""Largest share of the image that labels may cover."""
_HIDDEN = 0.3
"""A label is left out where more than this share of it would lie under labels of larger objects."""
_NAMED_SHARE = 0.01
"""Smallest share of the image for which a class of a label map is named."""
_LONGEST = 40
"""Largest number of characters of a label."""
BACKGROUNDS = frozenset({"background", "_background_", "__background__", "bg"})
"""Names, in lower case, of the class of a label map that is no object: it is neither tinted nor named."""


@dataclass(frozen=True)
class Style:
    """What is drawn for each object."""

    boxes: bool = True
    labels: bool = True
    """Name and score of each object, and names of regions."""
    colours: Literal["object", "class"] = "object"
    """Whether each object has its own colour, in a video that of its track, or the colour of its class. With ``class``,
    the segments of a class in a panoptic image have the same brightness."""


def overlay(
    image: UInt8[np.ndarray, "h w 3"], prediction: Prediction, style: Style = Style()
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image with its objects drawn over it; lines and text scale with the image.

    When there are many objects, only the largest are labelled, so that text does not hide the image. For a label map
    all classes but the background are tinted, for a panoptic image all segments, and the larger ones are named.
    """
    return np.asarray(_canvas(image, prediction, style))


def _canvas(image: UInt8[np.ndarray, "h w 3"], prediction: Prediction, style: Style) -> Image.Image:
    """`overlay` as an image of Pillow."""
    size = (image.shape[0], image.shape[1])
    if size != prediction.meta.size:
        prediction = _shrunk(prediction, size)
    names = prediction.categories.names
    if prediction.semantic is not None:
        ground = [n for n, name in enumerate(names) if name.strip().lower() in BACKGROUNDS]
        tinted = paint_classes(image, prediction.semantic, len(names), untinted=ground)
        named = ["" if n in ground or not style.labels else name for n, name in enumerate(names)]
        return _name_regions(Image.fromarray(tinted), prediction.semantic, named)
    if prediction.panoptic is not None:
        ids, segments = prediction.panoptic.ids, prediction.panoptic.segments
        order = np.zeros(1 + max((s.id for s in segments), default=0), np.int32)
        order[[s.id for s in segments]] = np.arange(1, len(segments) + 1)
        numbers, labels = order[ids], [s.label for s in segments]
        tinted = paint_segments(image, numbers, labels, len(names), shades=style.colours == "object")
        named = ["", *(names[label] if style.labels else "" for label in labels)]
        return _name_regions(Image.fromarray(tinted), numbers, named)
    if prediction.instances is None or len(prediction.instances) == 0:
        return Image.fromarray(image)
    return _canvas_of_objects(image, prediction.instances, names, style)


def _canvas_of_objects(
    image: UInt8[np.ndarray, "h w 3"], found: Instances, names: Sequence[str], style: Style
) -> Image.Image:
    boxes, side = np.asarray(found.boxes, np.float64), min(image.shape[:2])
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")  # small objects on top of large ones
    tracks = found.track_ids
    marks = [f" #{number}" for number in tracks.tolist()] if tracks is not None else [""] * len(found)
    texts = [f"{names[int(found.labels[i])]}{marks[i]} {found.scores[i]:.2f}" for i in order.tolist()]
    few = min(1.0, (20 / len(order)) ** 0.5)  # many objects: smaller text and thinner lines, down to half
    font, line = max(11, round(side / 40 * max(few, 0.5))), max(1, round(side / 300 * max(few, 0.5)))
    areas = (np.array([text_width(text, font) for text in texts]) + font / 2) * 1.5 * font
    labelled = (np.cumsum(areas) <= _TEXT_SHARE * image.shape[0] * image.shape[1]) & style.labels
    rles = found.masks.rle() if found.masks is not None else []
    masks = (rle.decode_region(rles[i]) for i in order.tolist() if rles)
    shown = [text if there else "" for text, there in zip(texts, labelled, strict=True)]
    own = (tracks - 1 if tracks is not None else np.arange(len(found)))[order]
    by_class = style.colours == "class"
    colours = class_colours(len(names))[found.labels[order]] if by_class else _COLOURS[own % len(_COLOURS)]
    painted = paint_objects(image, masks, colours, contour=line)
    frames = boxes[order] if style.boxes or not rles else None
    return _draw_frames(painted, boxes[order], frames, colours, shown, font, line)


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
    it covers other labels least, and left out where it would cover much of them; an empty text draws no label.
    ``line`` is the width of lines in pixels.
    """
    painted = paint_objects(image, masks, colours, contour=line)
    return np.asarray(_draw_frames(painted, boxes, boxes, colours, texts, font_size, line))


def _draw_frames(
    canvas: Image.Image,
    places: Float[np.ndarray, "n 4"],
    boxes: Float[np.ndarray, "n 4"] | None,
    colours: UInt8[np.ndarray, "n 3"],
    texts: Sequence[str],
    font_size: int,
    line: int,
) -> Image.Image:
    """The canvas with ``boxes`` around its objects, and labels beside ``places``."""
    pen = ImageDraw.Draw(canvas)
    inks = [tuple(colour) for colour in np.asarray(colours).tolist()]
    frames = np.asarray(boxes).round().astype(int).tolist() if boxes is not None else []
    for (x1, y1, x2, y2), ink in zip(frames, inks, strict=False):
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=ink, width=line)
    pad = max(2, font_size // 4)
    taken = np.zeros((0, 4))
    for box, ink, text in zip(np.asarray(places, float), inks, map(one_line, texts), strict=True):
        if not text:
            continue
        font, text = fitted(text, font_size)
        ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (font_size, 2)
        size = (pen.textlength(text, font) + 2 * pad, ascent + descent + pad)
        place, hidden = _place(box, size, canvas.size, taken)
        if hidden > _HIDDEN * size[0] * size[1]:
            continue
        taken = np.vstack([taken, place])
        pen.rectangle((*place[:2], *(place[2:] - 1)), fill=ink)
        bright = np.dot(ink, (0.299, 0.587, 0.114)) > 150
        pen.text((place[0] + pad, place[1] + pad / 2), text, "black" if bright else "white", font)
    return canvas


def _place(
    box: Float[np.ndarray, "4"], size: tuple[float, float], canvas: tuple[int, int], taken: Float[np.ndarray, "n 4"]
) -> tuple[Float[np.ndarray, "4"], float]:
    """The box of a label of ``size`` (width, height), and how many pixels of ``taken`` it covers: the least that any
    candidate next to ``box`` does.

    Candidates in order: above the box and inside it at the top, left and right; below it and inside it at the bottom.
    """
    (x1, y1, x2, y2), (width, height) = box, size
    columns, rows = (x1, x2 - width), ((y1 - height, y1), (y2, y2 - height))
    corners = np.array([(x, y) for pair in rows for x in columns for y in pair])  # (8, 2)
    corners = np.clip(corners, 0, np.maximum(np.subtract(canvas, size), 0)).round()
    places = np.concatenate([corners, corners + np.ceil(size)], 1)  # (8, 4)
    shared = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
    covered = shared.clip(min=0).prod(2).sum(1)
    return places[covered.argmin()], float(covered.min())


def _name_regions(canvas: Image.Image, labels: Int[np.ndarray, "h w"], names: Sequence[str]) -> Image.Image:
    """The image with the name of each larger region written where it is thickest; ``labels`` index ``names``."""
    pen, size = ImageDraw.Draw(canvas), max(11, round(min(canvas.size) / 32))
    areas = np.zeros(max(256, len(names)), np.int64)
    for rows in strips(labels.shape[1], len(labels), 1 << 20):
        areas += np.bincount(labels[rows].ravel(), minlength=len(areas))[: len(areas)]
    step = max(1, max(labels.shape) // 256)  # fewer pixels are enough to find the place
    coarse = labels[::step, ::step]
    for label in np.flatnonzero(areas[: len(names)] >= _NAMED_SHARE * labels.size).tolist():
        if not names[label]:
            continue
        inside = np.pad(coarse == label, 1)  # the border of the image is a contour too
        depth = np.asarray(ndimage.distance_transform_cdt(inside))[1:-1, 1:-1]
        y, x = divmod(int(depth.argmax()), depth.shape[1])
        font, text = fitted(one_line(names[label]), size)
        pen.text((x * step, y * step), text, "white", font, "mm", stroke_width=2, stroke_fill="black")
    return canvas


def one_line(text: str) -> str:
    """A name as one line of text: shortened, without line breaks; control characters are shown as escapes."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[3 - _LONGEST // 2 :]}"


def text_width(text: str, font_size: int = 11) -> float:
    """Width in pixels of a label's text."""
    font, text = fitted(one_line(text), font_size)
    return font.getlength(text)


def save_labels(prediction: Prediction, path: Path) -> Path:
    """Write the label map as a PNG whose values are class numbers 0..K-1, with the colours of overlays."""
    assert prediction.semantic is not None
    image = Image.fromarray(prediction.semantic)
    colours = class_colours(len(prediction.categories)).tobytes()
    image.putpalette(colours.ljust(3 * 256, b"\xff"))  # with a shorter palette Pillow would clip 255
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def save(prediction: Prediction, path: Path, style: Style = Style()) -> Path:
    """Draw ``prediction`` over its image and write it to ``path``, whose extension chooses the format.

    An image with more than 33 million pixels is drawn at a half, a quarter or an eighth of its size. Raises `DataError`
    when the image cannot be read again or the extension is not that of an image format.
    """
    image = prediction.image
    if image is None:
        image, _ = read_reduced(prediction.meta.path, _reduction)
    _write(_canvas(image, prediction, style), path)
    return path


def _reduction(size: tuple[int, int]) -> int:
    """The least reduction of an image with more than `LARGE` pixels that leaves no more."""
    return next((f for f in (2, 4) if size[0] * size[1] <= LARGE * f * f), 8)


def _shrunk(prediction: Prediction, size: tuple[int, int]) -> Prediction:
    """The prediction in an image of another ``size`` (H, W), by the nearest pixels."""
    meta = prediction.meta
    y, x = (((np.arange(n) + 0.5) * have / n).astype(np.int64) for n, have in zip(size, meta.size, strict=True))
    small = Prediction(replace(meta, size=size), prediction.categories)
    if prediction.semantic is not None:
        small.semantic = prediction.semantic[np.ix_(y, x)]
    if prediction.panoptic is not None:
        small.panoptic = Panoptic(prediction.panoptic.ids[np.ix_(y, x)], prediction.panoptic.segments)
    if prediction.instances is not None:
        found = prediction.instances
        boxes = found.boxes * np.tile(np.divide(size[::-1], meta.size[::-1]), 2).astype(np.float32)
        masks = Masks(size, [_shrunk_mask(r, y, x) for r in found.masks.rle()]) if found.masks is not None else None
        small.instances = replace(found, boxes=boxes, masks=masks)
    return small


def _shrunk_mask(record: rle.Rle, y: Int[np.ndarray, "h"], x: Int[np.ndarray, "w"]) -> rle.Rle:
    """The run lengths of a mask at the rows ``y`` and the columns ``x``."""
    region, top, left = rle.decode_region(record)
    first, last = np.searchsorted(y, (top, top + region.shape[0]))
    start, stop = np.searchsorted(x, (left, left + region.shape[1]))
    part = region[np.ix_(y[first:last] - top, x[start:stop] - left)]
    return rle.encode_region(part, int(first), int(start), (len(y), len(x)))


def write_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write RGB pixels atomically. Raises `DataError` when the extension is not that of an image format."""
    _write(Image.fromarray(image), path)


def _write(image: Image.Image, path: Path) -> None:
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"{path}: not an image format; use the extension .jpg or .png")
    with replacing(path) as temporary:
        image.save(temporary, format=kind, quality=92)
