"""Drawing of predictions: masks, boxes, names and scores over the image, by `supervision`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskkit.data.images import read_image
from maskkit.errors import DataError
from maskkit.files import replacing
from maskkit.prediction import Prediction

if TYPE_CHECKING:
    import supervision

# dark enough for white text, neighbours in the list far apart in hue
_COLOURS = (
    "#1668dc", "#d4380d", "#389e0d", "#9254de", "#c41d7f", "#08979c", "#ad6800", "#cf1322", "#1d39c4", "#5b8c00",
)  # fmt: skip

_TEXT_SHARE = 0.12
"""Share of an image that labels may cover."""
_NAMED_SHARE = 0.01
"""Share of an image from which on a class of a label map is named."""
_SHADES = np.array([1.0, 0.7, 0.5, 0.85, 0.6], np.float32)
"""Brightnesses of the segments of one class, in turn."""
_MASK_BYTES = 1 << 28
"""Dense masks are made for so many objects at once that they take no more memory than this."""


def to_supervision(prediction: Prediction) -> supervision.Detections:
    """The instances as `supervision.Detections`: dense masks, class numbers, names in ``data["class_name"]``."""
    sv = _supervision()
    found = prediction.instances
    if found is None or len(found) == 0:
        return sv.Detections.empty()
    names = np.array([prediction.categories.names[int(label)] for label in found.labels])
    return sv.Detections(
        xyxy=np.asarray(found.boxes, np.float32),
        mask=found.masks.dense() if found.masks is not None else None,
        confidence=np.asarray(found.scores, np.float32),
        class_id=np.asarray(found.labels, int),
        data={"class_name": names},
    )


def overlay(image: UInt8[np.ndarray, "h w 3"], prediction: Prediction) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image with its objects drawn over it, each in its own colour; lines and text fit the image's size.

    Where objects are many, the largest alone are labelled: text must not hide the image. Of a label map all classes
    are tinted, of a panoptic image all segments, and those that cover enough are named.
    """
    names = prediction.categories.names
    if prediction.semantic is not None:
        return _name_regions(paint(image, prediction.semantic, len(names)), prediction.semantic, names)
    if prediction.panoptic is not None:
        ids, segments = prediction.panoptic.ids, prediction.panoptic.segments
        order = np.zeros(1 + max((s.id for s in segments), default=0), np.int64)
        order[[s.id for s in segments]] = np.arange(1, len(segments) + 1)
        numbers, labels = order[ids], [s.label for s in segments]
        tinted = paint_segments(image, numbers, labels, len(names))
        return _name_regions(tinted, numbers, ["", *(names[label] for label in labels)])
    sv = _supervision()
    found = prediction.instances
    if found is None or len(found) == 0:
        return image.copy()
    height, width = image.shape[:2]
    style = {"color": sv.ColorPalette.from_hex(list(_COLOURS)), "color_lookup": sv.ColorLookup.INDEX}
    boxes = np.asarray(found.boxes, np.float32)
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")  # small objects are drawn over large ones
    canvas = np.ascontiguousarray(image[..., ::-1])  # supervision draws in BGR

    at_once = max(1, _MASK_BYTES // (height * width))
    for start in range(0, len(order) if found.masks is not None else 0, at_once):
        part = order[start : start + at_once]
        some = sv.Detections(boxes[part], mask=found.masks[part].dense())  # type: ignore[index]
        canvas = sv.MaskAnnotator(opacity=0.45, **style).annotate(canvas, some, custom_color_lookup=part)
    thickness = max(1, round(min(height, width) / 300))
    canvas = sv.BoxAnnotator(thickness=thickness, **style).annotate(
        canvas, sv.Detections(boxes[order]), custom_color_lookup=order
    )

    font, padding = max(11, round(min(height, width) / 40)), max(2, round(min(height, width) / 200))
    texts = np.array([f"{names[label]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)])
    areas = (0.55 * font * np.char.str_len(texts) + 2 * padding) * (font + 2 * padding)
    shown = order[np.cumsum(areas[order]) <= _TEXT_SHARE * height * width]
    canvas = sv.RichLabelAnnotator(font_size=font, text_padding=padding, smart_position=True, **style).annotate(
        canvas, sv.Detections(boxes[shown]), labels=texts[shown].tolist(), custom_color_lookup=shown
    )
    return np.ascontiguousarray(canvas[..., ::-1])


def class_colours(count: int) -> UInt8[np.ndarray, "n 3"]:
    """A colour per class: hues a golden section apart, in three brightnesses, so that neighbours in the list differ."""
    hues = (np.arange(count) * 0.61803398875) % 1
    values = np.array([0.95, 0.7, 0.5])[np.arange(count) % 3]
    return np.array([[255 * c for c in hsv_to_rgb(h, 0.75, v)] for h, v in zip(hues, values, strict=True)], np.uint8)


def paint(
    image: UInt8[np.ndarray, "h w 3"], labels: UInt8[np.ndarray, "h w"], classes: int, opacity: float = 0.55
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image tinted in the colours of its classes; labels beyond ``classes`` leave it as it is."""
    colours = np.zeros((256, 3), np.float32)
    colours[:classes] = class_colours(classes)
    alpha = np.where(np.arange(256) < classes, opacity, 0).astype(np.float32)[labels][..., None]
    return (image * (1 - alpha) + colours[labels] * alpha).astype(np.uint8)


def paint_segments(
    image: UInt8[np.ndarray, "h w 3"],
    numbers: Int[np.ndarray, "h w"],
    labels: Sequence[int] | Int[np.ndarray, "n"],
    classes: int,
    opacity: float = 0.55,
) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB image tinted segment by segment, with light lines between them; 0 in ``numbers`` leaves it as it is.

    Segment 1 is of class ``labels[0]``, and so on. Those of one class have its hue, in different brightnesses.
    """
    labels = np.asarray(labels, np.int64)
    rank = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)], np.int64)  # within the class
    colours = np.zeros((len(labels) + 1, 3), np.float32)
    colours[1:] = class_colours(classes)[labels] * _SHADES[rank % len(_SHADES), None]
    alpha = np.where(numbers > 0, opacity, 0).astype(np.float32)[..., None]
    tinted = (image * (1 - alpha) + colours[numbers] * alpha).astype(np.uint8)
    width = 2 * max(1, round(min(numbers.shape) / 600)) + 1
    lowest, highest = (f(numbers, width, mode="nearest") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    tinted[lowest != highest] = tinted[lowest != highest] // 3 + 170
    return tinted


def _name_regions(
    image: UInt8[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"], names: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the name of each larger region at its thickest place; ``labels`` are places in ``names``."""
    canvas = Image.fromarray(image)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(11, round(min(image.shape[:2]) / 32)))
    areas = np.bincount(labels.ravel(), minlength=len(names))
    step = max(1, max(labels.shape) // 256)  # a place is found as well on fewer pixels
    coarse = labels[::step, ::step]
    for label in np.flatnonzero(areas[: len(names)] >= _NAMED_SHARE * labels.size).tolist():
        inside = np.pad(coarse == label, 1)  # the border of the image is a contour too
        depth = np.asarray(ndimage.distance_transform_cdt(inside))[1:-1, 1:-1]
        y, x = divmod(int(depth.argmax()), depth.shape[1])
        pen.text((x * step, y * step), names[label], "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.asarray(canvas)


def save_labels(prediction: Prediction, path: Path) -> Path:
    """Write the label map as a PNG whose values are class numbers 0..K-1, with the colours of `paint` as palette."""
    assert prediction.semantic is not None
    image = Image.fromarray(prediction.semantic)
    colours = class_colours(len(prediction.categories)).tobytes()
    image.putpalette(colours.ljust(3 * 256, b"\xff"))  # Pillow would cut values beyond a short palette, as 255
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path


def save(prediction: Prediction, path: Path) -> Path:
    """Draw ``prediction`` over its image and write it to ``path``, whose ending chooses the format.

    Raises `DataError` when the image cannot be read again or the ending names no image format.
    """
    image = prediction.image
    if image is None:
        image = read_image(prediction.meta.path).permute(1, 2, 0).numpy()  # (H, W, 3)
    write_image(overlay(image, prediction), path)
    return path


def write_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write RGB pixels in one move, so that no half-written image is ever seen."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(f"{path}: {path.suffix or 'no ending'} is no image format; use .jpg or .png")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format=kind, quality=92)


def _supervision():
    with warnings.catch_warnings():  # it warns when OpenCV is missing; its numpy drawing serves as well
        warnings.simplefilter("ignore", UserWarning)
        import supervision
    return supervision
