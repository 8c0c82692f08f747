"""COCO's panoptic files: a json whose annotations name the segments of an image of ids.

Every segment, thing or stuff, becomes an object, whose mask is read from the image of ids on demand. The same files
serve as label maps, in which id 0 and crowds are ignored. Results of the same format are written by
`write_results` and read by `read_results`; in between a segment is a row of `maskkit.prediction.Prediction.to_coco`.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.data.files import finder, image_folders
from maskkit.data.label_map import IGNORE, IdImage, LabelFile
from maskkit.data.records import Annotation, Box, Record, Segment
from maskkit.data.rules import Problems, Warn, sound_box, stated_size
from maskkit.errors import DataError
from maskkit.files import replacing, write_json
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories

Row = Mapping[str, Any]
"""A segment as a result: ``image_id``, ``category_id``, run-length ``segmentation``, ``score`` where one is known."""

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""Errors that a json of another layout causes."""


def dataset(file: Path, content: dict[str, Any]) -> Dataset:
    """The images of ``content``, which was read from ``file``; the images of ids are in a folder beside it.

    Raises `DataError` when the file as a whole cannot be used.
    """
    try:
        listed = [(str(c["name"]), c["id"], bool(c.get("isthing", 1))) for c in content["categories"]]
        categories = Categories(*zip(*listed, strict=True))
        rows = {a["image_id"]: a for a in content["annotations"]}
    except _MALFORMED as error:
        raise DataError(f"{file}: its lists do not follow COCO's panoptic format ({error!r})") from error
    reader = _Reader(
        file,
        {key: label for label, key in enumerate(categories.ids)},
        finder(_image_folders(file)),
        finder(_id_folders(file)),
    )
    records = []
    for number, image in enumerate(content["images"], 1):
        try:
            records.append(reader.record(image, rows.get(image["id"])))
        except _MALFORMED as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            name = image.get("file_name") if isinstance(image, dict) else None
            reader.problems.error(file, f"image {name or number}", reason)
    return Dataset(records, categories, file, "panoptic", reader.problems)


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
        """The record of one image and its annotation. Raises one of `_MALFORMED` when they cannot be used."""
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


def read_results(file: Path, content: Mapping[str, Any], dataset: Dataset) -> list[dict[str, Any]]:
    """The segments in ``content``, which was read from ``file``, as rows; the ids lie in a folder beside it.

    Raises `DataError` when something cannot be used, and for an image of ``dataset`` without segments.
    """
    ids_of = finder(_id_folders(file))
    rows = []
    try:
        by_image = {a["image_id"]: a for a in content["annotations"]}
        for record in dataset.records:
            if record.image_id not in by_image:
                raise ValueError(f"has no segments for image {record.image_id}; predict every image of the data")
            found = by_image[record.image_id]
            if (ids := ids_of(found["file_name"])) is None:
                raise ValueError(f"the ids {found['file_name']} of image {record.image_id} cannot be found beside it")
            rles = IdImage(ids, frozenset(s["id"] for s in found["segments_info"])).rles(record.size)
            for segment in found["segments_info"]:
                category = segment["category_id"]
                if category not in dataset.categories.ids:
                    raise ValueError(f"image {record.image_id} has a segment of class {category!r}, the data has none")
                row = {"image_id": record.image_id, "category_id": category, "segmentation": rles[segment["id"]]}
                rows.append(row | ({"score": segment["score"]} if "score" in segment else {}))
    except _MALFORMED as error:
        raise DataError(f"{file}: {f'has no {error}' if isinstance(error, KeyError) else error}") from None
    return rows


def write_results(file: Path, rows: Iterable[Row], images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write segments as COCO's panoptic results: ``file``, and a PNG of ids per image in the folder of the same name.

    ``images`` are COCO's image records. The json comes last, so that it never speaks of a PNG that is not there.
    """
    by_image: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    things = dict(zip(categories.ids, categories.things, strict=True))
    taken: set[str] = set()
    annotations = []
    for image in images:
        stem = Path(image["file_name"]).stem
        while stem.lower() in taken:
            stem = f"{stem}_{image['id']}"
        taken.add(stem.lower())
        size = (image["height"], image["width"])
        ids, segments = np.zeros(size, np.uint32), []
        for number, row in enumerate(by_image[image["id"]], 1):
            ids[mask_math.decode([row["segmentation"]], size)[0]] = number
            category = row["category_id"]
            segment = {"id": number, "category_id": category, "isthing": int(things[category])}
            segments.append(segment | ({"score": row["score"]} if "score" in row else {}))
        with replacing(file.with_suffix("") / f"{stem}.png") as temporary:
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)  # (H, W, 3)
            Image.fromarray(colours).save(temporary, format="PNG")
        annotations.append({"image_id": image["id"], "file_name": f"{stem}.png", "segments_info": segments})
    write_json(file, {"annotations": annotations, "categories": categories.to_coco()})


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


def _id_folders(file: Path) -> list[Path]:
    return [f for f in (file.with_suffix(""), file.parent / "panoptic", file.parent) if f.is_dir()]


def _image_folders(file: Path) -> list[Path]:
    """Folders that may hold the images: not those of the ids, which often have the same names."""
    instances = file.with_name(file.stem.removeprefix("panoptic_") + ".json")
    of_ids = {file.with_suffix(""), file.parent / "panoptic"}
    return [f for f in (*image_folders(file), *image_folders(instances)) if f not in of_ids]
