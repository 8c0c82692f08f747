"""COCO's panoptic files: a json whose annotations name the segments of an image of ids.

Every segment, of things or of stuff, becomes an object, whose mask is read from the image of ids when it is asked
for. The same files serve as label maps, where id 0 and crowds are not known. Results of the same format are read and
written by `maskkit.eval.panoptic.files`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data.dataset import Dataset
from maskkit.data.files import finder, image_folders
from maskkit.data.label_map import IGNORE, IdImage, LabelFile
from maskkit.data.records import Annotation, Box, Record, Segment
from maskkit.data.rules import Problems, Warn, sound_box, stated_size
from maskkit.errors import DataError
from maskkit.prediction import Categories

MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What a json of another layout leads to."""


def dataset(file: Path, content: dict[str, Any]) -> Dataset:
    """The images of ``content``, which was read from ``file``; the images of ids are in a folder beside it.

    Raises `DataError` when the file as a whole cannot be used.
    """
    try:
        listed = [(str(c["name"]), c["id"], bool(c.get("isthing", 1))) for c in content["categories"]]
        categories = Categories(*zip(*listed, strict=True))
        rows = {a["image_id"]: a for a in content["annotations"]}
    except MALFORMED as error:
        raise DataError(f"{file}: its lists do not follow COCO's panoptic format ({error!r})") from error
    reader = _Reader(
        file,
        {key: label for label, key in enumerate(categories.ids)},
        finder(_image_folders(file)),
        finder(id_folders(file)),
    )
    records: dict[int, Record] = {}
    for number, image in enumerate(content["images"], 1):
        try:
            record = reader.record(image, rows.get(image["id"]))
            if record.image_id in records:
                raise ValueError(f"another image has the id {record.image_id} too; give this one another")
            records[record.image_id] = record
        except MALFORMED as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            name = image.get("file_name") if isinstance(image, dict) else None
            reader.problems.error(file, f"image {name or number}", reason)
    return Dataset(list(records.values()), categories, file, "panoptic", reader.problems)


@dataclass
class _Reader:
    """One pass over one file."""

    file: Path
    numbers: dict[Any, int]
    """Class number of a category id."""
    find_image: Callable[[str], Path | None]
    ids: Callable[[str], Path | None]
    problems: Problems = field(default_factory=Problems)
    fresh: Iterator[int] = field(default_factory=partial(itertools.count, 1))
    """Ids of the annotations; those of the segments are unique only within an image."""

    def record(self, image: dict[str, Any], row: dict[str, Any] | None) -> Record:
        """The record of one image and its annotation. Raises one of `MALFORMED` when they cannot be used."""
        name, size = f"image {image['id']} ({image['file_name']})", stated_size(image["height"], image["width"])
        if size is None:
            raise ValueError(f"has no valid image size: height {image['height']!r}, width {image['width']!r}")
        if (path := self.find_image(image["file_name"])) is None:
            raise ValueError("the image cannot be found; add it, or remove the record")
        if row is None:
            raise ValueError("there is no annotation of it; add its segments, or remove the record")
        if (ids := self.ids(row["file_name"])) is None:
            raise ValueError(f"the ids {row['file_name']} cannot be found; add them, or remove the record")
        id_image = IdImage(ids, frozenset(s["id"] for s in row["segments_info"]))
        values, objects = {0: IGNORE}, []
        for segment in row["segments_info"]:
            place = f"segment {segment['id']} of {name}"
            label, crowd = self.numbers.get(segment["category_id"]), bool(segment.get("iscrowd"))
            values[segment["id"]] = IGNORE if crowd or label is None else label
            if label is None:
                self.problems.error(self.file, place, f"has the unknown class {segment['category_id']}; add it")
                continue
            box = _box(segment, size, partial(self.problems.warn, self.file, place))
            area = segment["area"] if isinstance(segment.get("area"), int | float) else None
            objects.append(Annotation(next(self.fresh), label, box, Segment(id_image, segment["id"]), crowd, area))
        return Record(int(image["id"]), path, size, objects, LabelFile(ids, values))


def _box(segment: Mapping[str, Any], size: tuple[int, int], warn: Warn) -> Box | None:
    """The box of the file; None, which means the box of the mask, when the file has no usable one."""
    if not segment.get("bbox"):
        return None
    try:
        x, y, width, height = segment["bbox"]
        return sound_box((x, y, x + width, y + height), size, warn)
    except (ValueError, TypeError) as error:
        warn(f"{error}; the box of the mask is taken")
        return None


def id_folders(file: Path) -> list[Path]:
    """Where the images of ids of a json file may lie, likeliest first."""
    return [f for f in (file.with_suffix(""), file.parent / "panoptic", file.parent) if f.is_dir()]


def _image_folders(file: Path) -> list[Path]:
    """Folders that may hold the images: not those of the ids, which often have the same names."""
    instances = file.with_name(file.stem.removeprefix("panoptic_") + ".json")
    of_ids = {file.with_suffix(""), file.parent / "panoptic"}
    return [f for f in (*image_folders(file), *image_folders(instances)) if f not in of_ids]
