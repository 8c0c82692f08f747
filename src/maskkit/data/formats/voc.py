"""Pascal VOC: ``SegmentationObject`` and ``SegmentationClass`` palette images, ``Annotations`` in xml.

A value of ``SegmentationObject`` is one object (0 background, 255 void); its class is the most frequent value of its
pixels in ``SegmentationClass``, which is also the label map of the image. An image without them has the boxes of its
xml file and no masks. "Difficult" objects are read like the others.
"""

from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from jaxtyping import UInt8

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile, read_values
from maskkit.data.records import Annotation, Record, number
from maskkit.data.rules import Problems, sound_box
from maskkit.data.voc_classes import VOC
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories

LAYOUT = (
    "Pascal VOC: JPEGImages/ (or images/) with SegmentationObject/ and SegmentationClass/, or with Annotations/*.xml"
)

_LISTS = ("ImageSets/Segmentation", "ImageSets/Main", "")


def recognise(folder: Path) -> bool:
    """Whether the folder has images beside VOC's masks or xml files."""
    labelled = (folder / "SegmentationObject").is_dir() or any((folder / "Annotations").glob("*.xml"))
    return labelled and _images(folder) is not None


def splits(folder: Path) -> list[str]:
    """Names of the splits for which there is a list of images."""
    return [split for split in SPLITS if _list(folder, split)]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images in the list of ``split``; for None those of all lists, or all that are labelled.

    Images are numbered from 1 in the order of their names. Classes are VOC's, or those of ``class_names.txt``, or the
    names in the xml files in alphabetical order; their ids 1..K are the values of ``SegmentationClass``. Raises
    `DataError` when the folder does not have VOC's layout or has no such list.
    """
    folder = _images(path)
    if folder is None:
        raise DataError(f"{path}: has no folder JPEGImages or images; VOC keeps the images there")
    lists = [_list(path, name) for name in ([split] if split else SPLITS)]
    if split and lists == [None]:
        raise DataError(f"{path}: has no {split} split; list its images in ImageSets/Segmentation/{split}.txt")
    listed = {line.split()[0] for file in lists if file for line in file.read_text().splitlines() if line.strip()}
    names = sorted(
        listed or {p.stem for sub in ("SegmentationObject/*.png", "Annotations/*.xml") for p in path.glob(sub)}
    )
    reader = _Reader(path, _categories(path))
    images = {image.stem: image for image in find_images(folder)}
    records = [r for i, name in enumerate(names, 1) if (r := reader.record(i, name, images.get(name)))]
    return Dataset(number(records), reader.categories, path, "voc", reader.problems)


def _images(folder: Path) -> Path | None:
    return next((folder / name for name in ("JPEGImages", "images") if (folder / name).is_dir()), None)


def _list(folder: Path, split: str) -> Path | None:
    return next((f for sub in _LISTS if (f := folder / sub / f"{split}.txt").is_file()), None)


def _categories(folder: Path) -> Categories:
    names_file = folder / "class_names.txt"  # written by labelme's own converter
    if names_file.is_file():
        lines = [line.strip() for line in names_file.read_text(encoding="utf-8").splitlines()]
        return Categories.of(n for n in lines if n and n not in ("__ignore__", "_background_"))
    used: set[str] = set()
    for file in sorted((folder / "Annotations").glob("*.xml")):
        try:
            used |= {(node.findtext("name") or "").strip() for node in _objects(file)}
        except DataError:
            continue  # reported when its image is read
    return VOC if used <= set(VOC.names) else Categories.of(sorted(used - {""}))


class _Reader:
    """Reads one image at a time and collects the problems."""

    def __init__(self, root: Path, categories: Categories) -> None:
        self.root, self.categories = root, categories
        self.values = {0: BACKGROUND, IGNORE: IGNORE} | {value: i for i, value in enumerate(categories.ids)}
        self.problems = Problems()

    def record(self, image_id: int, name: str, image: Path | None) -> Record | None:
        """The image called ``name`` with its objects, None when it cannot be used."""
        if image is None:
            self.problems.error(
                self.root, name, "there is no such image; add it to JPEGImages/, or remove it from the list"
            )
            return None
        masks, boxes = self.root / "SegmentationObject" / f"{name}.png", self.root / "Annotations" / f"{name}.xml"
        labels = self.root / "SegmentationClass" / f"{name}.png"
        try:
            size = image_size(image)
            semantic = LabelFile(labels, self.values) if labels.is_file() else None
            if masks.is_file():
                return Record(image_id, image, size, self.masked(masks, size), semantic)
            if boxes.is_file():
                return Record(image_id, image, size, self.boxed(boxes, size), semantic)
            if semantic is not None:
                return Record(image_id, image, size, [], semantic)
        except DataError as error:
            self.problems.error(image, "", str(error))
            return None
        self.problems.warn(image, "", "has neither masks nor an xml file; it is read as an image without objects")
        return Record(image_id, image, size, [])

    def masked(self, file: Path, size: tuple[int, int]) -> list[Annotation]:
        """The objects of a ``SegmentationObject`` image."""
        objects, classes = _palette(file, size), _palette(self.root / "SegmentationClass" / file.name, size)
        found = []
        for value in sorted(set(np.unique(objects).tolist()) - {0, 255}):
            mask = objects == value
            votes = np.bincount(classes[mask], minlength=256)[1:255]
            category = 1 + int(votes.argmax()) if votes.any() else 0
            if category not in self.categories.ids:
                reason = f"its class in SegmentationClass is {category}, not one of 1 to {len(self.categories)}"
                self.problems.error(file, f"object {value}", f"{reason}; correct the pixels")
                continue
            found.append(Annotation(0, self.categories.index(category), None, mask_math.encode(mask[None])[0]))
        return found

    def boxed(self, file: Path, size: tuple[int, int]) -> list[Annotation]:
        """The objects of an xml file: boxes without masks."""
        found = []
        for i, node in enumerate(_objects(file), 1):
            name = (node.findtext("name") or "").strip()
            try:
                if name not in self.categories.names:
                    raise ValueError(f"the class {name!r} is not one of {', '.join(self.categories.names)}")
                sides = [float(node.findtext(f"bndbox/{s}") or "nan") for s in ("xmin", "ymin", "xmax", "ymax")]
                edges = (
                    sides[0] - 1,
                    sides[1] - 1,
                    sides[2],
                    sides[3],
                )  # VOC counts from 1 and includes the last pixel
                box = sound_box(edges, size, partial(self.problems.warn, file, f"object {i}"))
            except ValueError as error:
                self.problems.error(file, f"object {i}", str(error))
                continue
            found.append(Annotation(0, self.categories.names.index(name), box))
        return found


def _objects(file: Path) -> list[Element]:
    """The ``object`` elements of an xml file. Raises `DataError`, also for a DOCTYPE, by which xml can do harm."""
    try:
        return list(parse(file, forbid_dtd=True).iter("object"))
    except DefusedXmlException:
        raise DataError(f"{file}: has a DOCTYPE or entities, which are refused; remove them from the file") from None
    except (ParseError, ValueError, LookupError, OSError) as error:  # the second and third: of its encoding
        raise DataError(f"{file}: is not xml ({error}); export the annotations again") from error


def _palette(file: Path, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Indices of a palette (or grey) image of ``size``. Raises `DataError`."""
    values = read_values(file, size)
    if values.dtype != np.uint8:
        raise DataError(f"{file}: is a colour image; save it with a palette, or as 8-bit grey")
    return values
