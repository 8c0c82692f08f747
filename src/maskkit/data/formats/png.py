"""Folders of images beside index images: the grey or palette value of a pixel is its class, 255 is unknown.

Layouts: ``images/train/`` with ``masks/train/`` (the layout of ADE20K), ``train/images/`` with
``train/masks/``, ``train/`` with ``trainannot/`` (SegNet's own), and ``images/`` with ``masks/`` without splits; the
masks may also be in ``labels/`` or ``annotations/``. The classes are in ``classes.json``, which may give each a colour
of the masks; or in ``class_dict.csv``, a table of names and colours; or in ``classes.txt``, one per line from value 0;
without any each value that occurs is a class.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from maskkit.data.class_files import LabelClasses, find_classes, of_values
from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import IGNORE, LabelFile, colour_of, read_labels
from maskkit.data.records import Record
from maskkit.data.rules import Problems, counted
from maskkit.errors import DataError

LAYOUT = "Label images: images/ with masks/ (or labels/, annotations/) of index PNGs, with train/ and val/ in each"

_MASKS = ("masks", "labels", "annotations")
_NAMES = SPLITS | {"train": (*SPLITS["train"], "training")}


def find(folder: Path) -> dict[str | None, tuple[Path, Path]]:
    """Folders of images and of label images by split; None stands for a folder without splits."""
    found: dict[str | None, tuple[Path, Path]] = {}
    for split, names in _NAMES.items():
        for name in names:
            pairs = [(folder / "images" / name, folder / masks / name) for masks in _MASKS]
            pairs += [(folder / name / "images", folder / name / masks) for masks in _MASKS]
            pairs += [(folder / name, folder / f"{name}annot")]
            if pair := next(filter(_is_pair, pairs), None):
                found.setdefault(split, pair)
    whole = next(filter(_is_pair, [(folder / "images", folder / masks) for masks in _MASKS]), None)
    return found or ({None: whole} if whole else {})


def recognise(folder: Path) -> bool:
    """Whether the folder has images beside label images."""
    return bool(find(folder))


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder has."""
    return [split for split in find(folder) if split is not None]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a ``split`` (all of them for None) with their label maps, numbered in the order of names.

    Raises `DataError` when there is no such split or the classes cannot be read.
    """
    found = find(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; add images/{split}/ and masks/{split}/")
    problems = Problems()
    rows = [row for pair in (found.values() if split is None else [found[split]]) for row in _rows(*pair, problems)]
    classes = find_classes(path, problems)
    if classes is None:
        elsewhere = [mask for pair in found.values() for mask in pair[1].glob("*.png")]
        rows, classes = _usable(path, rows, elsewhere, problems)
    records = []
    for number, (image, mask) in enumerate(rows, 1):
        try:
            labels = LabelFile(mask, classes.numbers, classes.colours)
            records.append(Record(number, image, image_size(image), [], labels))
        except DataError as error:
            problems.error(image, "", str(error))
    return Dataset(records, classes.categories, path, "png", problems)


def _is_pair(pair: tuple[Path, Path]) -> bool:
    images, masks = pair
    return images.is_dir() and masks.is_dir() and any(masks.glob("*.png")) and bool(find_images(images))


def _rows(images: Path, masks: Path, problems: Problems) -> list[tuple[Path, Path]]:
    """Images with their label images."""
    rows = []
    for image in find_images(images):
        mask = masks / f"{image.stem}.png"
        if rows and mask == rows[-1][1]:
            problems.error(image, "", f"has the label image of {rows[-1][0].name}; rename one of them and its labels")
        elif mask.is_file():
            rows.append((image, mask))
        else:
            problems.error(image, "", f"has no label image {mask}; add it, or remove the image")
    bare = sorted({mask.name for mask in masks.glob("*.png")} - {mask.name for _, mask in rows})
    if bare:
        shown = ", ".join(bare[:5]) + (", ..." if len(bare) > 5 else "")
        problems.warn(masks, "", f"{len(bare)} label images have no image: {shown}; add the images or remove them")
    return rows


def _usable(
    folder: Path, rows: list[tuple[Path, Path]], elsewhere: list[Path], problems: Problems
) -> tuple[list[tuple[Path, Path]], LabelClasses]:
    """The rows whose values can be classes without a list of them, and these: the values that occur in any split."""
    kept, values = [], set()
    unfit: dict[str, list[Path]] = {}
    for mask in elsewhere:
        seen, _ = _look(mask, mask.stat().st_mtime_ns)
        values.update(seen)
    for image, mask in rows:
        seen, fault = _look(mask, mask.stat().st_mtime_ns)
        if seen:
            kept.append((image, mask))
        elif fault in (_COLOURED, _LARGE):
            unfit.setdefault(fault, []).append(mask)
        else:
            problems.error(mask, "", fault)
    for fault, masks in unfit.items():
        first = np.unique(read_labels(masks[0], None)[0]).tolist()
        more = f" ({counted(len(masks) - 1, 'other label image')} too)" if len(masks) > 1 else ""
        if fault == _COLOURED:
            shown = ", ".join(str(list(colour_of(value))) for value in first[:6])
            text = f"is a colour image{more}, with {counted(len(first), 'colour')}: {shown}{', ...' * (len(first) > 6)}"
            form = f'{{"classes": [{{"id": 0, "name": "background", "color": {list(colour_of(first[0]))}}}, ...]}}'
        else:
            text = f"has values up to {first[-1]}{more}, which cannot all be classes"
            form = f'{{"classes": [{{"id": {first[-1]}, "name": "cat"}}, ...]}}'
        problems.error(masks[0], "", f"{text}; name the classes in {folder / 'classes.json'}: {form}")
    if len(values) > _MANY:
        problems.warn(
            folder,
            "",
            f"the label images hold {len(values)} different values, and each is read as a class; if edges were blurred "
            f"or compressed, make the masks again; if not, name the classes in {folder / 'classes.txt'}",
        )
    elif _are_numbers_of_objects([mask for _, mask in kept][:_LOOKED_AT]):
        problems.warn(
            folder,
            "",
            "the values of each label image count from 1, and each is one region: if they number objects, it is wrong "
            "that each is read as a class; write COCO, or VOC's SegmentationObject beside SegmentationClass",
        )
    return kept, of_values({value: str(value) for value in values})


def _are_numbers_of_objects(masks: list[Path]) -> bool:
    """Whether label images number objects, as far as one can see: 1 to n in each, of which each is one region."""
    found = [set(_look(mask, mask.stat().st_mtime_ns)[0]) - {0, IGNORE} for mask in masks]
    counted = all(values == set(range(1, len(values) + 1)) for values in found)
    several = len(set(map(len, found))) > 1 and max(map(len, found)) >= _OBJECTS
    return counted and several and all(map(_has_single_regions, masks))


def _has_single_regions(mask: Path) -> bool:
    """Whether every value but 0 and 255 is one connected region."""
    pixels, _ = read_labels(mask, None)
    windows = enumerate(ndimage.find_objects(pixels, IGNORE - 1), 1)
    parts = (ndimage.label(pixels[w] == value, np.ones((3, 3)))[1] for value, w in windows if w is not None)  # type: ignore[index]
    return all(count == 1 for count in parts)


_COLOURED, _LARGE = "colours", "values of more than 8 bits"
_LOOKED_AT = 20
_OBJECTS = 4
_MANY = 64
"""So many values without a list of classes are rather blurred edges."""


@lru_cache(maxsize=100_000)  # each split is read with the classes of all
def _look(mask: Path, written: int) -> tuple[tuple[int, ...], str]:
    """The values of a label image, or none and why they cannot be classes."""
    try:
        pixels, coloured = read_labels(mask, None)
    except DataError as error:
        return (), str(error)
    if coloured:
        return (), _COLOURED
    values = np.flatnonzero(np.bincount(pixels.reshape(-1))) if pixels.dtype == np.uint8 else np.unique(pixels)
    return (tuple(values.tolist()), "") if values[-1] <= 255 and values[0] >= 0 else ((), _LARGE)
