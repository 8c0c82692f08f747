"""LabelImg's Pascal VOC: an xml beside each image, with boxes; Roboflow's export has ``train/`` and ``valid/`` of them.

The xml of ``a.jpg`` is ``a.xml``, or the one whose ``filename`` is ``a.jpg``. Objects are boxes, with a mask where
there is a polygon, as in `maskkit.data.formats.voc`. Images without an xml are left out, because they may be
unlabelled.
"""

import re
from itertools import islice
from pathlib import Path
from xml.etree.ElementTree import Element

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.formats.voc import boxes_of, class_names, size_of
from maskkit.data.images import find_images, image_size
from maskkit.data.records import Record, number
from maskkit.data.rules import Problems
from maskkit.data.text_files import beginning_of, read_xml
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "LabelImg: a Pascal VOC .xml beside each image, in the folder itself or in train/ and val/"

_OPENING = 1 << 12
_LOOKED_AT = 20
"""So many xml files of a folder are looked at, where none of them is VOC's."""


def recognise(folder: Path) -> bool:
    """Whether the folder, or one of its splits, has an xml of VOC's beside images."""
    return any(_is_voc(file) for place in (folder, *parts(folder).values()) for file in _some(place))


def splits(folder: Path) -> list[str]:
    """Names of the sub folders that are splits."""
    return list(parts(folder))


def parts(folder: Path) -> dict[str, Path]:
    """Sub folders with xml files that are splits."""
    found = {}
    for split, names in SPLITS.items():
        if place := next((folder / name for name in names if any(map(_is_voc, _some(folder / name)))), None):
            found[split] = place
    return found


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a folder, or of its sub folder ``split``; numbered from 1 in the order of the xml files.

    Classes are the names in all files in alphabetical order, the same for every split. Raises `DataError` when there is
    no such split.
    """
    found = parts(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; it has {', '.join(found) or 'no sub folder train or val'}")
    problems = Problems()
    places = [path, *found.values()]
    contents: dict[Path, Element] = {}
    for file in (file for place in places for file in sorted(place.glob("*.xml"))):
        chosen = split is None or file.parent == found[split]
        try:
            content = read_xml(file)
        except DataError as error:
            if chosen:
                problems.error(file, "", str(error))
            continue
        if content.tag == "annotation":
            contents[file] = content
    categories = Categories.of(sorted({name for content in contents.values() for name in class_names(content)}))
    records: list[Record] = []
    for place in [found[split]] if split is not None else places:
        images = find_images(place)
        named = {image.name: image for image in images} | {image.stem: image for image in reversed(images)}
        taken: dict[Path, Path] = {}
        for file in (file for file in contents if file.parent == place):
            image = named.get(file.stem) or named.get((contents[file].findtext("filename") or "").strip())
            if image is None:
                problems.error(file, "", "there is no such image beside it; add it, or remove the file")
                continue
            if (owner := taken.setdefault(image, file)) != file:
                problems.error(file, "", f"describes {image.name}, as {owner.name} does; keep one of them")
                continue
            try:
                size = size_of(contents[file]) or image_size(image)
            except DataError as error:
                problems.error(image, "", str(error))
                continue
            objects = boxes_of(file, contents[file], size, categories, problems)
            records.append(Record(len(records) + 1, image, size, objects))
        if bare := len(images) - len(taken):
            problems.warn(place, "", f"{bare} images have no xml; they are left out, because they may be unlabelled")
    if split and (stray := sum(file.parent == path for file in contents)):
        problems.warn(path, "", f"{stray} images are in no split (train, val, test); they are left out of all of them")
    return Dataset(number(records), categories, path, "labelimg", problems)


def _some(folder: Path) -> list[Path]:
    return list(islice(folder.glob("*.xml"), _LOOKED_AT))


def _is_voc(file: Path) -> bool:
    """Whether an xml is VOC's, by its first element."""
    try:
        return re.search(rb"<annotation[\s>]", beginning_of(file, _OPENING).replace(b"\0", b"")) is not None
    except DataError:
        return False
