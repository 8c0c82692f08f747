"""Formats of data sets: one module each, and `FORMATS`, the table of all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maskkit.data.dataset import Dataset
from maskkit.data.formats import coco, labelme, png, tags, voc, yolo


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
    suffixes: tuple[str, ...] = ()
    """File names, by suffix, that can be given instead of a folder."""


FORMATS = (
    Format("coco", coco.LAYOUT, coco.recognise, coco.splits, coco.read, (".json",)),
    Format("yolo", yolo.LAYOUT, yolo.recognise, yolo.splits, yolo.read, (".yaml", ".yml")),
    Format("voc", voc.LAYOUT, voc.recognise, voc.splits, voc.read),
    Format("labelme", labelme.LAYOUT, labelme.recognise, labelme.splits, labelme.read),
    Format("png", png.LAYOUT, png.recognise, png.splits, png.read),
    Format("tags", tags.LAYOUT, tags.recognise, tags.splits, tags.read, (".csv",)),
)
"""All formats, in the order in which a folder is tested for them."""
