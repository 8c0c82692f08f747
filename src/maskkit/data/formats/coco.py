"""COCO annotation files: a json, or a folder that holds one per split beside its images.

Layouts: ``annotations.json``; ``train.json`` and ``val.json`` with ``images/``; COCO's own
``annotations/instances_train2017.json`` with ``train2017/``; Roboflow's ``train/_annotations.coco.json`` with the
images beside it; FiftyOne's ``labels.json`` with ``data/``.
"""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data import ids
from maskkit.data.dataset import Dataset, join
from maskkit.data.files import SPLITS, image_folders, load_json
from maskkit.data.formats import foreign
from maskkit.data.formats.coco_outlines import CONTRADICTION, bbox_numbers, outline, plain_outlines, upright
from maskkit.data.formats.coco_panoptic import dataset as panoptic_dataset
from maskkit.data.images import image_size
from maskkit.data.places import locate, unseen
from maskkit.data.records import UNKNOWN_SIZE, Annotation, Record, extent_or_none
from maskkit.data.rules import (
    CORNERS,
    Problems,
    are_corners,
    counted,
    is_set,
    is_thing,
    kind_of,
    sound_rle,
    stated_size,
)
from maskkit.errors import DataError
from maskkit.geometry import polygons
from maskkit.prediction import Categories

LAYOUT = (
    "COCO: annotations.json, train.json, annotations/instances_train*.json, annotations/panoptic_train*.json or "
    "train/_annotations.coco.json "
    '(with "images", "annotations" and "categories")'
)


_LARGEST = 1e300
"""Numbers beyond are none that anyone measured."""

_WHOLE = (
    "annotations.json",
    "_annotations.coco.json",
    "annotations/instances_default.json",
    "result.json",
    "labels.json",
    "panoptic.json",
)


_PARTLY = (
    "each image is labelled for a part of the classes (LVIS); objects of the others are taught as background and count "
    "as false, so a measurement here is not that of LVIS"
)
_SHOWN = 20
"""Boxes that contradict their masks, of one file, that are named one by one."""


def find(folder: Path, segments: bool = False) -> dict[str | None, Path]:
    """Annotation files of a folder by split; None stands for the file with all images.

    Of several for one split it is the first of the patterns below; with ``segments`` panoptic files come first.
    """
    return {split: files[0] for split, files in _candidates(folder, segments).items()}


def _candidates(folder: Path, segments: bool = False) -> dict[str | None, list[Path]]:
    """All annotation files of a folder by split, those that count first."""
    found: dict[str | None, list[Path]] = {}
    for split, names in SPLITS.items():
        for name in names:
            patterns = (
                f"{name}.json",
                f"{name}/_annotations.coco.json",
                f"{name}/annotations.json",
                f"{name}/labels.json",
                f"annotations/{name}.json",
                f"annotations/instances_{name}*.json",
                f"instances_{name}*.json",
                f"annotations/panoptic_{name}*.json",
                f"panoptic_{name}*.json",
            )
            ranked = sorted(patterns, key=lambda pattern: not segments or "panoptic_" not in pattern)
            candidates = [p for pattern in ranked for p in sorted(folder.glob(pattern)) if not foreign.of_one_image(p)]
            if candidates:
                found.setdefault(split, list(dict.fromkeys(candidates)))
    for name in _WHOLE:
        if (folder / name).is_file() and not foreign.of_one_image(folder / name):
            found.setdefault(None, [folder / name])
    return found


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder has files for."""
    return [split for split in find(folder) if split is not None]


def recognise(path: Path) -> bool:
    """Whether it is a file, which is COCO's if no other format is, or a folder with COCO files."""
    return path.is_file() or bool(find(path))


def read(path: Path, split: str | None = None, images: bool = True) -> Dataset:
    """The images of a json file, or of a folder's ``split`` (all of them for None).

    Without ``images`` no image file is looked at, and none must be there. Raises `DataError` when the file as a whole
    cannot be read.
    """
    if path.is_file():
        return read_json(path, images)
    found = _candidates(path)
    if not found or (split is not None and split not in found):
        there = ", ".join(str(files[0]) for files in found.values())
        raise DataError(f"{path}: has no {split} split; it has {there or 'no COCO file'}")
    chosen = [found[split]] if split in found else list(found.values())
    parts = [read_json(files[0], images) for files in chosen]
    data = parts[0] if split in found else join(parts, path)
    for first, *others in chosen:
        same = [file.name for file in others if ("panoptic_" in file.name) == ("panoptic_" in first.name)]
        if same:
            data.problems.warn(
                path, "", f"{first.name} is read, {', '.join(same)} of the same split not; join the files"
            )
    return data


def read_truth(path: Path, split: str | None = None) -> Dataset:
    """`read` without images."""
    return read(path, split, images=False)


def read_json(file: Path, images: bool = True) -> Dataset:
    """The data set of one COCO ground-truth file. Raises `DataError` as `read` does."""
    content = load_json(file)
    listed = isinstance(content, dict) and isinstance(content.get("images"), list)
    if not listed and (known := foreign.of_json(content)) is not None:
        raise DataError(f"{file}: {known}")
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: holds {kind_of(content)}; ground truth is an object with images, annotations, categories"
        )
    lacking = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if lacking:
        raise DataError(f"{file}: has no list of {', '.join(lacking)}; it is not COCO ground truth")
    if any("segments_info" in row for row in content["annotations"][:1] if isinstance(row, dict)):
        return panoptic_dataset(file, content, images)
    return _Reader(file, images).dataset(content)


class _Reader:
    """One pass over one file."""

    def __init__(self, file: Path, look: bool = True) -> None:
        self.file = file
        self.look = look
        """Whether images must be there."""
        self.problems = Problems()
        self.contradictions = 0
        self.error = partial(self.problems.error, file)
        self.warn = partial(self.problems.warn, file)

    def dataset(self, content: dict[str, Any]) -> Dataset:
        categories = self.categories(
            content["categories"], {ids.whole(_get(a, "category_id")) for a in content["annotations"]}
        )
        images = self.images(content["images"])
        usable, truth = self.annotations(content["annotations"], images, categories)
        records = [
            replace(r, annotations=usable[key], truth=truth.get(key)) for key, r in images.items() if r is not None
        ]
        return Dataset(records, categories, self.file, "coco", self.problems)

    def categories(self, rows: list[Any], used: set[int | None]) -> Categories:
        names: dict[int, str] = {}
        things: list[bool] = []
        for i, row in enumerate(rows):
            key = ids.whole(_get(row, "id"))
            if key is None:
                self.error(f"category {i + 1}", "has no whole number as id; give it one")
                continue
            if key == 0 and row.get("supercategory") == "none" and 0 not in used:
                continue  # Roboflow writes the name of the project as a class that nothing belongs to
            name = str(row.get("name") or key)
            if key in names:
                self.error(
                    f"category {key}", f"the id is used twice, for {names[key]!r} and {name!r}; the first one counts"
                )
                continue
            names[key] = name
            things.append(is_thing(row))
        if not names:
            self.error("", "has no category; add the classes")
        return Categories(tuple(names.values()), tuple(names), tuple(things))

    def images(self, rows: list[Any]) -> dict[Any, Record | None]:
        """Records by the image id of the annotations; None for an image that is left out."""
        named = {i: n for i, row in enumerate(rows, 1) if isinstance(n := _file_name(row), str)}
        files = dict(zip(named, locate(list(named.values()), image_folders(self.file)), strict=True))
        first = next(iter(image_folders(self.file)), self.file.parent)
        found: dict[Any, Record | None] = {}
        for i, row in enumerate(rows, 1):
            key = ids.key(_get(row, "id"))
            file_name = _file_name(row)
            if key is None or (self.look and not isinstance(file_name, str)):
                self.error(f"image {i} of the list", "has no id or no file_name; add them")
                continue
            name = f"image {row['id']} ({file_name})"
            if key in found:
                self.error(name, "the id is used twice; the first image keeps it, give this one another")
                continue
            found[key], own = None, ids.own(row["id"])
            assert own is not None  # as its key
            path = files.get(i, "")
            if not self.look:
                size = stated_size(ids.whole(row.get("height")), ids.whole(row.get("width"))) or UNKNOWN_SIZE
                there = unseen(first, file_name) if isinstance(path, str) else path
                found[key] = Record(own, there, size, [])
                continue
            if isinstance(path, str):
                self.error(name, path)
                continue
            try:
                size = stated_size(ids.whole(row.get("height")), ids.whole(row.get("width"))) or image_size(path)
            except DataError as error:
                self.error(name, str(error))
                continue
            found[key] = Record(own, path, size, [])
        if not rows:
            self.error("", "lists no image")
        if _get(next(iter(rows), None), "not_exhaustive_category_ids") is not None:
            self.warn("", _PARTLY)
        return found

    def annotations(
        self, rows: list[Any], images: dict[Any, Record | None], categories: Categories
    ) -> tuple[dict[Any, list[Annotation]], dict[Any, list[Annotation]]]:
        """The usable objects of each image and, where the file has others than these, those of the file."""
        labels = {key: i for i, key in enumerate(categories.ids)}
        objects: dict[Any, list[Annotation]] = defaultdict(list)
        stated: dict[Any, list[Annotation]] = defaultdict(list)
        differ: set[Any] = set()
        seen: set[int] = set()
        keys = [ids.key(_get(row, "image_id")) for row in rows]
        own = [ids.whole(_get(row, "id")) for row in rows]
        plain = plain_outlines(rows, [r.size if (r := images.get(key)) is not None else None for key in keys])
        # for those without an id of their own
        fresh = 1 + max((number or 0 for number in own), default=0)
        for i, (row, key, number, known) in enumerate(zip(rows, keys, own, plain, strict=True), 1):
            if not isinstance(row, dict):
                self.error(f"annotation {i} of the list", f"is {kind_of(row)}, not an object")
                continue
            label = labels.get(ids.whole(row.get("category_id")))  # type: ignore[arg-type]
            if key not in images:
                self.error(_name(row, i), "the file has no such image; add the image record, or remove the annotation")
                continue
            if label is None:
                self.error(_name(row, i), f"the file has no category {row.get('category_id')!r}; add it to categories")
                continue
            if (record := images[key]) is None:
                continue  # the image was reported
            if number in seen:
                self.warn(_name(row, i), f"the id is used twice; this one is read as {fresh}")
            if number is None or number in seen:
                number, fresh = fresh, fresh + 1
            seen.add(number)
            said: list[str] = []
            try:
                row = row if known else upright(row, said.append)
                mask, box, stated_box = known or outline(row, record.size, said.append)
                area = _area(row)
                area = area if area is None or area >= 0 else None
                usable = Annotation(number, label, box, mask, is_set(row.get("iscrowd")), area, stated_box)
                objects[key].append(usable)
                # the measure counts what the file says, not what was mended
                mended = bool(said) and any(message != CONTRADICTION for message in said)
                doubtful = mended or (usable.area is None and row.get("area") is not None)
                other = _as_stated(row, number, label, record.size) if doubtful else None
            except ValueError as error:
                usable, other = None, _as_stated(row, number, label, record.size)
                if self.look or other is None:
                    self.error(_name(row, i), str(error), measured=other is not None)
            for message in said:
                self.doubt(_name(row, i), message)
            if (measured := other or usable) is not None:
                stated[key].append(measured)
            if other is not None:
                differ.add(key)
        if not rows:
            self.warn("", "has no annotation; every image is read as background")
        if pointed := sum(bool(_get(row, "keypoints")) for row in rows):
            self.warn("", f"{counted(pointed, 'annotation')} with keypoints: they are not read")
        sized = ((a.box, r.size) for k, r in images.items() if r is not None for a in stated.get(k, ()) if a.box)
        if are_corners(((x, y, right - x, low - y), s) for (x, y, right, low), s in sized if s != UNKNOWN_SIZE):
            self.warn("", CORNERS)
        if self.contradictions > _SHOWN:
            others = counted(self.contradictions - _SHOWN, "other annotation")
            self.warn(others, f"the same: {CONTRADICTION}")
        return objects, {key: stated[key] for key in differ}

    def doubt(self, name: str, message: str) -> None:
        """Warn of an annotation; only the first boxes that contradict their masks are named one by one."""
        self.contradictions += message == CONTRADICTION
        if message != CONTRADICTION or self.contradictions <= _SHOWN:
            self.warn(name, message)


def _name(row: dict[str, Any], place: int) -> str:
    """What an annotation is called in a message."""
    return f"annotation {row.get('id', f'{place} of the list')} of image {row.get('image_id')}"


def _as_stated(row: dict[str, Any], number: int, label: int, size: tuple[int, int]) -> Annotation | None:
    """The object with the very numbers of the file, however degenerate; None where there is nothing to measure."""
    shape = row.get("segmentation") or None
    if isinstance(shape, list) and all(part == [] for part in shape):
        shape = None
    if isinstance(shape, list) and isinstance(shape[0], int | float):
        shape = [shape]
    try:
        if isinstance(shape, dict):
            shape = sound_rle(shape, size if size != UNKNOWN_SIZE else tuple(shape["size"]), allow_empty=True)
        elif shape is not None and size != UNKNOWN_SIZE:
            polygons.as_stated(shape, size)
    except (ValueError, TypeError, OverflowError, KeyError):
        shape = None
    try:
        x, y, width, height = stated = bbox_numbers(row.get("bbox"))
        box = (x, y, x + width, y + height)
    except ValueError:
        box, stated = extent_or_none(shape), None
    if box is None and (shape is None or size == UNKNOWN_SIZE):
        return None
    return Annotation(number, label, box, shape, is_set(row.get("iscrowd")), _area(row), stated)


def _area(row: dict[str, Any]) -> float | None:
    """The area of the file, where it is a number."""
    area = row.get("area")
    if type(area) is float and abs(area) < _LARGEST:
        return area
    usable = isinstance(area, int | float) and not isinstance(area, bool) and abs(area) < _LARGEST
    return float(area) if usable else None  # type: ignore[arg-type]


def _file_name(row: Any) -> Any:
    """The name of an image's file; LVIS has an address in its place."""
    name, address = _get(row, "file_name"), _get(row, "coco_url")
    return "/".join(address.split("/")[-2:]) if name is None and isinstance(address, str) else name


def _get(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, dict) else None
