"""Formats of data sets: one module each, and `FORMATS`, the table of all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maskkit.data.dataset import Dataset
from maskkit.data.formats import (
    boxes,
    cityscapes,
    coco,
    cvat,
    datumaro,
    folders,
    labelimg,
    labelme,
    labelstudio,
    png,
    supervisely,
    tags,
    via,
    voc,
    yolo,
    yolo_bare,
)


@dataclass(frozen=True)
class Format:
    """How a format is recognised and read."""

    name: str
    layout: str
    """One line for people: the files that the format consists of."""
    recognise: Callable[[Path], bool]
    """Whether a folder holds a data set of this format."""
    splits: Callable[[Path], list[str]]
    """The splits (``train``, ``val``, ``test``) of a folder or file."""
    read: Callable[[Path, str | None], Dataset]
    """The data set at a path, or one split of it. Raises `DataError` when it cannot be read as a whole."""
    folders: Callable[[Path, str | None], folders.Folders]
    """The folders of the images of a path or split."""
    suffixes: tuple[str, ...] = ()
    """File names, by suffix, that can be given instead of a folder."""
    read_truth: Callable[[Path, str | None], Dataset] | None = None
    """`read`, to measure results with, without any image file; None: the format does not know sizes without them."""


FORMATS = (
    Format("cvat", cvat.LAYOUT, cvat.recognise, cvat.splits, cvat.read, folders.of_cvat, (".xml",)),
    Format(
        "cityscapes",
        cityscapes.LAYOUT,
        cityscapes.recognise,
        cityscapes.splits,
        cityscapes.read,
        folders.of_cityscapes,
    ),
    Format(
        "supervisely",
        supervisely.LAYOUT,
        supervisely.recognise,
        supervisely.splits,
        supervisely.read,
        folders.of_supervisely,
    ),
    *(
        Format(name, m.LAYOUT, m.recognise, m.splits, m.read, partial(folders.of_json, m.find), (".json",))
        for name, m in (("labelstudio", labelstudio), ("via", via), ("datumaro", datumaro))
    ),
    Format("coco", coco.LAYOUT, coco.recognise, coco.splits, coco.read, folders.of_coco, (".json",), coco.read_truth),
    Format("yolo", yolo.LAYOUT, yolo.recognise, yolo.splits, yolo.read, folders.of_yolo, (".yaml", ".yml")),
    Format("voc", voc.LAYOUT, voc.recognise, voc.splits, voc.read, folders.of_voc),
    Format("labelimg", labelimg.LAYOUT, labelimg.recognise, labelimg.splits, labelimg.read, folders.of_labelimg),
    Format("labelme", labelme.LAYOUT, labelme.recognise, labelme.splits, labelme.read, folders.of_labelme),
    Format("png", png.LAYOUT, png.recognise, png.splits, png.read, folders.of_png),
    Format("yolo", yolo_bare.LAYOUT, yolo_bare.recognise, yolo_bare.splits, yolo_bare.read, folders.of_yolo_bare),
    Format("csv", boxes.LAYOUT, boxes.recognise, boxes.splits, boxes.read, folders.of_boxes, (".csv", ".tsv")),
    Format("tags", tags.LAYOUT, tags.recognise, tags.splits, tags.read, folders.of_tags, (".csv",)),
)
"""All formats, in the order in which a folder is tested for them."""
