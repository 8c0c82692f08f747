"""The folders of each format in which the images and label images of a data set lie.

Any of them may be a link to a folder elsewhere: that is a choice of whoever made the layout. What lies in them may
not be a link to elsewhere, see `maskkit.data.places.confined`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from maskkit.data.files import image_folders
from maskkit.data.formats import (
    boxes,
    cityscapes,
    coco,
    coco_panoptic,
    cvat,
    labelimg,
    labelme,
    png,
    supervisely,
    tags,
    yolo,
    yolo_bare,
)


class Folders(NamedTuple):
    """Folders of a data set, or of a split of it."""

    homes: Sequence[Path]
    """Where its images and label images may lie; the first is the folder of the data set."""
    listed: Sequence[Path] = ()
    """Those of which every image belongs to it."""
    deep: bool = False
    """Whether the images in folders inside of these belong to it too."""


def of_coco(path: Path, split: str | None) -> Folders:
    """The folder of the data set (the one above ``annotations/``), and where the images of its files may lie."""
    files = [path] if path.is_file() else [f for key, f in coco.find(path).items() if split in (key, None)]
    found = [_home(path)]
    for file in files:
        found += image_folders(file) + coco_panoptic.id_folders(file) + coco_panoptic.images_beside(file)
    return Folders(found)


def of_yolo(path: Path, split: str | None) -> Folders:
    """The folder of the yaml file, and the ``path`` in it, which may be anywhere; the folders that it names in them."""
    named = [f for key, found in yolo.folders(path).items() if split in (key, None) for f in found if f.is_dir()]
    roots = [Path(os.path.abspath(root)) for root in yolo.roots(path)]
    inside = [f for f in named if any(Path(os.path.abspath(f)).is_relative_to(root) for root in roots)]
    return Folders([*yolo.roots(path)[::-1], *inside], named, deep=True)


def of_voc(path: Path, split: str | None) -> Folders:
    """The folders of images and of label images."""
    images = [folder for name in ("JPEGImages", "images") if (folder := path / name).is_dir()]
    return Folders([path, *images, path / "SegmentationObject", path / "SegmentationClass"], images[:1])


def of_labelme(path: Path, split: str | None) -> Folders:
    """The folder and those of its splits."""
    parts = labelme.folders(path)
    return Folders([path, *parts.values()], [parts[split]] if split is not None else [path, *parts.values()])


def of_labelimg(path: Path, split: str | None) -> Folders:
    """The folder and those of its splits."""
    parts = labelimg.parts(path)
    return Folders([path, *parts.values()], [parts[split]] if split is not None else [path, *parts.values()])


def of_yolo_bare(path: Path, split: str | None) -> Folders:
    """The folders of images."""
    images = [place for key, place in yolo_bare.find(path).items() if split in (key, None)]
    return Folders([path, *images], images, deep=True)


def of_png(path: Path, split: str | None) -> Folders:
    """The folders of images and of label images."""
    pairs = [pair for key, pair in png.find(path).items() if split in (key, None)]
    return Folders([path, *(f for pair in pairs for f in pair)], [images for images, _ in pairs])


def of_cvat(path: Path, split: str | None) -> Folders:
    """The folders that the names in CVAT's files may mean."""
    return Folders([_home(path), *(folder for file in cvat.find(path) for folder in image_folders(file))])


def of_json(find: Callable[[Path], list[tuple[str | None, Path]]], path: Path, split: str | None) -> Folders:
    """The folders that the names in the files that ``find`` gives may mean."""
    return Folders([_home(path), *(folder for _, file in find(path) for folder in image_folders(file))])


def of_supervisely(path: Path, split: str | None) -> Folders:
    """The project, and the images of its datasets."""
    images = [folder / "img" for key, folder in supervisely.parts(path) if split in (key, None)]
    return Folders([path, *images], [folder for folder in images if folder.is_dir()])


def of_cityscapes(path: Path, split: str | None) -> Folders:
    """The folders of images and of labels."""
    images = cityscapes.image_folders(path, split)
    return Folders([path, *images, path / "leftImg8bit", path / "gtFine"], images, deep=True)


def of_boxes(path: Path, split: str | None) -> Folders:
    """The folders that a table of boxes may mean."""
    found = boxes.find(path)
    tables = [table for key, table in found.items() if split in (key, None)]
    return Folders([_home(path), *(folder for table in tables for folder in boxes.image_places(table))])


def of_tags(path: Path, split: str | None) -> Folders:
    """The folder of each class, or those that a table may mean."""
    places = [path] if path.is_file() else [p for key, p in tags.find(path).items() if split in (key, None)]
    beside = [folder for place in places if place.is_file() for folder in image_folders(place)]
    classes = [folder for place in places if place.is_dir() for folder in tags.class_folders(place)]
    return Folders([_home(path), *beside, *classes], classes)


def _home(path: Path) -> Path:
    return path.parent if path.is_file() else path
