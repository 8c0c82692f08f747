"""Pascal VOC: ``SegmentationObject`` and ``SegmentationClass`` palette images, ``Annotations`` in xml.

A value of ``SegmentationObject`` is one object (0 background, 255 void); its class is the most frequent value of its
pixels in ``SegmentationClass``, which is also the label map of the image. An image without them has the objects of its
xml file: boxes, with a mask where there is a ``polygon`` too, as Roboflow and supervision write it. The size in the xml
is compared with the image's. "Difficult" objects are read like the others. The attribute ``rotation`` of a box, which
CVAT writes, turns it about its centre. Where a ``labelmap.txt`` gives the classes
their colours, as in CVAT's export of segmentation masks, the images may be coloured: a colour is an object.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from jaxtyping import Int

from maskkit.data.class_files import VOID, LabelClasses, read_labelmap
from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile, colour_number, colour_of, read_labels
from maskkit.data.records import Annotation, Polygons, Record, number
from maskkit.data.rules import (
    WITHOUT_OBJECTS,
    Problems,
    Warn,
    brief,
    counted,
    sound_box,
    sound_polygons,
    stated_size,
    to_number,
    turned,
)
from maskkit.data.text_files import read_lines, read_names, read_xml
from maskkit.data.voc_classes import VOC
from maskkit.errors import DataError
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories

LAYOUT = (
    "Pascal VOC: JPEGImages/ (or images/) with SegmentationObject/ and SegmentationClass/, or with Annotations/*.xml"
)

_LABELS = ("SegmentationObject/*.png", "SegmentationClass/*.png", "Annotations/*.xml")
_LISTS = ("ImageSets/Segmentation", "ImageSets/Main", "")


def recognise(folder: Path) -> bool:
    """Whether the folder has images beside VOC's masks or xml files."""
    labelled = any((folder / name).is_dir() for name in ("SegmentationObject", "SegmentationClass"))
    labelled = labelled or any((folder / "Annotations").glob("*.xml"))
    return labelled and _images(folder) is not None


def splits(folder: Path) -> list[str]:
    """Names of the splits for which there is a list of images."""
    return [split for split in SPLITS if _list(folder, split)]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images in the list of ``split``; for None those of all lists, or all that are labelled.

    Images are numbered from 1 in the order of their names. Classes are those of ``class_names.txt`` or
    ``labelmap.txt``, else VOC's, which other names in the xml files follow; where no name is VOC's, or there are no
    masks, the names alone, in alphabetical order. Their ids 1..K are the values of ``SegmentationClass``. Raises
    `DataError` when the folder does not have VOC's layout or has no such list.
    """
    folder = _images(path)
    if folder is None:
        raise DataError(f"{path}: has no folder JPEGImages or images; VOC keeps the images there")
    lists = [_list(path, name) for name in ([split] if split else SPLITS)]
    if split and lists == [None]:
        raise DataError(f"{path}: has no {split} split; list its images in ImageSets/Segmentation/{split}.txt")
    problems = Problems()
    files = [file for file in lists if file]
    images = _by_name(folder, problems)
    listed = {_listed(line, images) for f in files for line in read_lines(f, partial(problems.warn, f, ""))} - {""}
    labelled = {p.stem for sub in _LABELS for p in path.glob(sub) if p.is_file()}
    names = sorted(listed if files else labelled)
    if not files and (bare := len(images.keys() - labelled)):
        problems.warn(folder, "", f"{bare} images have no labels; they are left out, because they may be unlabelled")
    reader = _Reader(path, _classes(path, problems), problems)
    records = [r for i, name in enumerate(names, 1) if (r := reader.record(i, name, images.get(name)))]
    if 0 < reader.maps_alone < len(records):
        problems.warn(path, "", f"{counted(reader.maps_alone, 'image')} with a label map alone: {WITHOUT_OBJECTS}")
    return Dataset(number(records), reader.categories, path, "voc", problems)


def _by_name(folder: Path, problems: Problems) -> dict[str, Path]:
    """The images by the names that lists and labels have for them."""
    images: dict[str, Path] = {}
    for image in find_images(folder):
        if image.stem in images:
            problems.error(image, "", f"{images[image.stem].name} has the same name and the labels; rename one of them")
        images.setdefault(image.stem, image)
    return images


def _listed(line: str, images: Mapping[str, Path]) -> str:
    """The name of an image in a line of a list.

    The line is the name, with spaces or without, or has the flag of a class behind it (``2008_000002 -1``), or is a
    path, which the path of a label may follow.
    """
    line = line.strip()
    first = line.split(maxsplit=1)[0] if line else ""
    unflagged = re.sub(r"\s+(-1|0|1)$", "", line)
    forms = [line, unflagged, *(re.split(r"[/\\]", text)[-1] for text in (unflagged, first))]
    forms += [form.rpartition(".")[0] for form in forms if "." in form]
    return next((form for form in [*forms, first] if form in images), unflagged)


def _images(folder: Path) -> Path | None:
    return next((folder / name for name in ("JPEGImages", "images") if (folder / name).is_dir()), None)


def _list(folder: Path, split: str) -> Path | None:
    return next((f for sub in _LISTS if (f := folder / sub / f"{split}.txt").is_file()), None)


def _classes(folder: Path, problems: Problems) -> LabelClasses:
    """The classes, and the class number of each value and, by ``labelmap.txt``, of each colour."""
    labelmap = folder / "labelmap.txt"
    if labelmap.is_file() and not (folder / "class_names.txt").is_file():
        return read_labelmap(labelmap, problems)
    categories = _categories(folder, problems)
    values = {0: BACKGROUND, IGNORE: IGNORE} | {value: i for i, value in enumerate(categories.ids)}
    return LabelClasses(categories, values)


def _categories(folder: Path, problems: Problems) -> Categories:
    names_file = folder / "class_names.txt"  # written by labelme's own converter
    if names_file.is_file():
        names = read_names(names_file, partial(problems.warn, names_file, ""))
        return Categories.of(name for name in names if name not in ("__ignore__", "_background_"))
    used: set[str] = set()
    for file in sorted((folder / "Annotations").glob("*.xml")):
        try:
            used |= {_name(node) for node in read_xml(file).iter("object")}
        except DataError:
            continue  # reported when its image is read
    used -= {""}
    others = sorted(used - set(VOC.names))
    masked = any((folder / "SegmentationClass").glob("*.png"))
    if masked and not used & set(VOC.names):
        taken = "their alphabetical order is taken" if used else "VOC's 20 classes are taken"
        problems.warn(folder, "", f"no class_names.txt says which value of the masks is which class; {taken}")
    if masked and len(others) < len(used) and others:  # an odd name must not renumber the values of the masks
        problems.warn(folder, "", f"{brief(', '.join(others))}: no classes of VOC's; they follow its 20")
        return Categories.of([*VOC.names, *others])
    return Categories.of(sorted(used)) if others else VOC


class _Reader:
    """Reads one image at a time and collects the problems."""

    def __init__(self, root: Path, classes: LabelClasses, problems: Problems) -> None:
        self.root, self.classes, self.problems = root, classes, problems
        self.categories = classes.categories
        self.maps_alone = 0
        """Images of which neither objects nor boxes are known."""

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
            known = self.classes
            semantic = LabelFile(labels, known.numbers, known.colours) if labels.is_file() else None
            if masks.is_file():
                return Record(image_id, image, size, self.masked(masks, size), semantic)
            if boxes.is_file():
                content = read_xml(boxes)
                if content.tag != "annotation":
                    raise DataError(f"{boxes}: is not Pascal VOC's, its root is {content.tag!r}; export it again")
                size = size_of(content) or size  # the doctor compares it with the image
                objects = boxes_of(boxes, content, size, self.categories, self.problems)
                return Record(image_id, image, size, objects, semantic)
            if semantic is not None:
                self.maps_alone += 1
                return Record(image_id, image, size, [], semantic)
        except DataError as error:
            self.problems.error(image, "", str(error))
            return None
        self.problems.warn(image, "", "has neither masks nor an xml file; it is read as an image without objects")
        return Record(image_id, image, size, [])

    def masked(self, file: Path, size: tuple[int, int]) -> list[Annotation]:
        """The objects of a ``SegmentationObject`` image."""
        objects, coloured = self.values(file, size)
        none = {0, colour_number(*VOID)} if coloured else {0, IGNORE}
        classes = self.class_ids(self.root / "SegmentationClass" / file.name, size)
        found = []
        for value in sorted(set(np.unique(objects).tolist()) - none):
            mask = objects == value
            votes = np.bincount(classes[mask], minlength=256)[1:255]
            category = 1 + int(votes.argmax()) if votes.any() else 0
            if category not in self.categories.ids:
                reason = f"its class in SegmentationClass is {category}, not one of 1 to {len(self.categories)}"
                self.problems.error(file, f"object {value}", f"{reason}; correct the pixels")
                continue
            found.append(Annotation(0, self.categories.index(category), None, mask_math.encode(mask[None])[0]))
        return found

    def values(self, file: Path, size: tuple[int, int]) -> tuple[Int[np.ndarray, "h w"], bool]:
        """The values of an image, and whether they are colours, as they may be where classes have some.

        Raises `DataError`.
        """
        values, coloured = read_labels(file, size, opaque=self.classes.colours is not None)
        if coloured and self.classes.colours is None:
            raise DataError(f"{file}: is a colour image; name the colours in labelmap.txt, or save it with a palette")
        if not coloured and values.max(initial=0) > 255:
            raise DataError(f"{file}: has the value {values.max()}; VOC's values are 0 to 255, save it with 8 bits")
        return values, coloured

    def class_ids(self, file: Path, size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
        """The id of the class of each pixel, 0 for none, 255 where it is unknown. Raises `DataError`."""
        values, coloured = self.values(file, size)
        if not coloured:
            return values
        known, special = self.classes.colours or {}, {BACKGROUND: 0, IGNORE: IGNORE}
        colours, place = np.unique(values, return_inverse=True)
        if unknown := [c for c in colours.tolist() if c not in known]:
            raise DataError(f"{file}: the colour {colour_of(unknown[0])} is not in labelmap.txt; add its class")
        numbers = (known[colour] for colour in colours.tolist())
        table = [special[n] if n in special else self.categories.ids[n] for n in numbers]
        return np.array(table)[place.reshape(size)]


def boxes_of(
    file: Path, content: Element, size: tuple[int, int], categories: Categories, problems: Problems
) -> list[Annotation]:
    """The objects of an xml file, boxes with or without a polygon; ``problems`` are told of those of no use."""
    found = []
    for i, node in enumerate(content.iter("object"), 1):
        name, warn = _name(node), partial(problems.warn, file, f"object {i}")
        try:
            if name not in categories.names:
                raise ValueError(f"the class {name!r} is not one of {', '.join(categories.names)}")
            x1, y1, x2, y2 = (_side(node, side) for side in ("xmin", "ymin", "xmax", "ymax"))
            box = (x1 - 1, y1 - 1, x2, y2)  # VOC counts from 1 and includes the last pixel
            box = sound_box(turned(box, _attribute(node, "rotation"), warn), size, warn)
        except ValueError as error:
            problems.error(file, f"object {i}", str(error))
            continue
        found.append(Annotation(0, categories.names.index(name), box, _polygons(node, size, warn)))
    return found


def class_names(content: Element) -> set[str]:
    """Classes of the objects of an xml file."""
    return {_name(node) for node in content.iter("object")} - {""}


def _name(node: Element) -> str:
    return (node.findtext("name") or "").strip()


def _attribute(node: Element, name: str) -> str | None:
    """An attribute as CVAT writes it; None where the object has none of this name."""
    found = (
        child.findtext("value") for child in node.iterfind("attributes/attribute") if child.findtext("name") == name
    )
    return next(found, None)


def _polygons(node: Element, size: tuple[int, int], warn: Warn) -> Polygons | None:
    """The polygon ``<x1/><y1/><x2/>...`` of an object; None without a sound one."""
    corners = {child.tag: child.text for child in node.iterfind("polygon/*")}
    sides = (f"{axis}{i}" for i in range(1, len(corners) // 2 + 1) for axis in "xy")
    if not corners:
        return None
    try:
        flat = [to_number((corners.get(side) or "").strip(), side) - 1 for side in sides]
        return sound_polygons([flat], size, warn)
    except ValueError as error:
        warn(f"{error}; the box alone is read")
        return None


def _side(node: Element, side: str) -> float:
    """One side of a box. Raises ``ValueError``."""
    text = (node.findtext(f"bndbox/{side}") or "").strip()
    if not text:
        raise ValueError(f"the box has no {side}; add it")
    return to_number(text, side)


def size_of(content: Element) -> tuple[int, int] | None:
    """(H, W) that an xml file states; None when it states none, or one that cannot be."""
    sides = [(content.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    return stated_size(*(int(side) if re.fullmatch(r"[0-9]{1,9}", side) else None for side in sides))
