"""COCO's panoptic files: a json whose annotations name the segments of an image of ids.

Every segment, of things or of stuff, becomes an object, whose mask is read from the image of ids when it is asked
for. The same files serve as label maps, where id 0 and crowds are not known. Results of the same format are read and
written by `maskkit.eval.panoptic.files`.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import image_folders
from maskkit.data.label_map import IGNORE, IdImage, LabelFile
from maskkit.data.places import locate, unseen
from maskkit.data.records import Annotation, Box, Record, Segment
from maskkit.data.rules import Problems, Warn, is_set, is_thing, kind_of, sound_box, stated_size, to_numbers
from maskkit.errors import DataError
from maskkit.prediction import Categories, ImageId

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What a json of another layout leads to."""


def dataset(file: Path, content: dict[str, Any], images: bool = True) -> Dataset:
    """The images of ``content``, which was read from ``file``; the images of ids are in a folder beside it.

    Without ``images`` no image file is looked at, and none must be there. Raises `DataError` when the file as a whole
    cannot be used.
    """
    try:
        listed = [(str(c["name"]), number(c["id"]), is_thing(c)) for c in content["categories"]]
        categories = Categories(*zip(*listed, strict=True))
        rows: dict[ImageId | None, dict[str, Any]] = {}
        for row in content["annotations"]:
            rows.setdefault(ids.key(row["image_id"]), row)
        annotated = Counter(ids.key(row["image_id"]) for row in content["annotations"])
    except MALFORMED as error:
        raise DataError(f"{file}: its lists do not follow COCO's panoptic format ({reason_of(error)})") from error
    files = locate([_name(image) for image in content["images"]], images_beside(file))
    if not images:
        there = (unseen(file.parent, _name(image)) for image in content["images"])
        files = [f if isinstance(f, Path) else path for f, path in zip(files, there, strict=True)]
    pixels = dict(zip(rows, locate([_name(row) for row in rows.values()], id_folders(file)), strict=True))
    reader = _Reader(file, {key: label for label, key in enumerate(categories.ids)})
    records: dict[ImageId | None, Record] = {}
    for place, image in enumerate(content["images"], 1):
        try:
            key = ids.key(image["id"])
            record = reader.record(image, rows.get(key), files[place - 1], pixels.get(key, ""))
            if key in records:
                raise ValueError(f"another image has the id {record.image_id} too; give this one another")
            records[key] = record
            if annotated[key] > 1:
                raise ValueError(f"image {record.image_id} has two annotations; the first one counts")
        except MALFORMED as error:
            reason = reason_of(error)
            name = image.get("file_name") if isinstance(image, dict) else None
            reader.problems.error(file, f"image {name or place}", reason)
    if not content["images"]:
        reader.problems.error(file, "", "lists no image")
    listed_ids = {ids.key(image.get("id")) for image in content["images"] if isinstance(image, dict)}
    for key in (key for key in rows if key not in listed_ids):
        where = f"annotation of image {key}"
        reader.problems.error(file, where, "the file has no such image; add the image record, or remove the annotation")
    return Dataset(list(records.values()), categories, file, "panoptic", reader.problems)


@dataclass
class _Reader:
    """One pass over one file."""

    file: Path
    numbers: dict[int | None, int]
    """Class number of a category id."""
    problems: Problems = field(default_factory=Problems)
    fresh: Iterator[int] = field(default_factory=partial(itertools.count, 1))
    """Ids of the annotations; those of the segments are unique only within an image."""

    def record(self, image: dict[str, Any], row: dict[str, Any] | None, path: Path | str, pixels: Path | str) -> Record:
        """The record of one image, its annotation, its file and that of its ids, or the reasons why there is none.

        Raises one of `MALFORMED` when they cannot be used.
        """
        name, size = f"image {image['id']} ({image['file_name']})", stated_size(image["height"], image["width"])
        if (own := ids.own(image["id"])) is None:
            raise ValueError(f"its id {image['id']!r} is neither a whole number nor a text; give it one")
        if size is None:
            raise ValueError(f"has no valid image size: height {image['height']!r}, width {image['width']!r}")
        if row is None:
            raise ValueError("there is no annotation of it; add its segments, or remove the record")
        if isinstance(path, str):
            raise ValueError(f"the image cannot be used: {path}")
        if isinstance(pixels, str):
            raise ValueError(f"the ids {row['file_name']} cannot be used: {pixels}")
        segments = segments_by_id(row)
        id_image = IdImage(pixels, frozenset(segments))
        values, objects = {0: IGNORE}, []
        for key, segment in segments.items():
            place = f"segment {key} of {name}"
            label, crowd = self.numbers.get(ids.whole(segment["category_id"])), is_set(segment.get("iscrowd"))
            values[key] = IGNORE if crowd or label is None else label
            if label is None:
                self.problems.error(self.file, place, f"has the unknown class {segment['category_id']}; add it")
                continue
            box = _box(segment, size, partial(self.problems.warn, self.file, place))
            area = segment["area"] if isinstance(segment.get("area"), int | float) else None
            objects.append(Annotation(next(self.fresh), label, box, Segment(id_image, key), crowd, area))
        return Record(own, path, size, objects, LabelFile(pixels, values))


def reason_of(error: Exception) -> str:
    """What one of `MALFORMED` says about the file, in words of the file."""
    if isinstance(error, KeyError):
        return f"has no {error.args[0]!r}" if error.args else "lacks a value"
    return str(error) if type(error) is ValueError else "a value is of another kind than the format has it"


def _name(row: Any) -> str:
    """The name of a file, empty where there is none."""
    name = row.get("file_name") if isinstance(row, dict) else None
    return name if isinstance(name, str) else ""


def segments_by_id(row: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """The segments of an annotation by their value in the image of ids. Raises one of `MALFORMED`."""
    segments: dict[int, Mapping[str, Any]] = {}
    if not isinstance(row["segments_info"], list):
        raise ValueError(f"segments_info is {kind_of(row['segments_info'])}; it is a list of segments")
    for segment in row["segments_info"]:
        key = number(segment["id"])
        if not 0 < key < 2**24:
            raise ValueError(f"the segment id {key} is not between 1 and {2**24 - 1}, as a pixel R + 256 G + 65536 B")
        if key in segments:
            raise ValueError(f"the segment id {key} is used twice; give each segment of an image its own")
        segments[key] = segment
    return segments


def number(value: Any) -> int:
    """An id that must be a whole number. Raises ``ValueError``."""
    if (found := ids.whole(value)) is None:
        raise ValueError(f"the id {value!r} is not a whole number; give it one")
    return found


def _box(segment: Mapping[str, Any], size: tuple[int, int], warn: Warn) -> Box | None:
    """The box of the file; None, which means the box of the mask, when the file has no usable one."""
    if not segment.get("bbox"):
        return None
    try:
        sides = to_numbers(segment["bbox"], "the box").tolist()
        if len(sides) != 4:
            raise ValueError("the box is not [x, y, width, height]")
        x, y, width, height = sides
        return sound_box((x, y, x + width, y + height), size, warn)
    except ValueError as error:
        warn(f"{error}; the box of the mask is taken")
        return None


def id_folders(file: Path) -> list[Path]:
    """Where the images of ids of a json file may lie, likeliest first."""
    return [f for f in (file.with_suffix(""), file.parent / "panoptic", file.parent) if f.is_dir()]


def images_beside(file: Path) -> list[Path]:
    """Folders that may hold the images: not those of the ids, which often have the same names."""
    instances = file.with_name(file.stem.removeprefix("panoptic_") + ".json")
    of_ids = {file.with_suffix(""), file.parent / "panoptic"}
    return [f for f in (*image_folders(file), *image_folders(instances)) if f not in of_ids]
