"""COCO's panoptic files: a json whose annotations name the segments of a picture of ids, read as a semantic data set.

Every category, thing or stuff, is a class; id 0 and crowds are not known. The objects themselves stand in the
instances file of the same pictures, which `coco` reads.
"""

from pathlib import Path
from typing import Any

from maskkit.data.coco import finder, picture_folders
from maskkit.data.label_map import IGNORE, LabelFile
from maskkit.data.records import Dataset, Problems, Record
from maskkit.types import Categories


def dataset(file: Path, content: dict[str, Any]) -> Dataset:
    """The pictures of ``content``, which was read from ``file``; the id pictures lie in a folder beside it."""
    categories = Categories(
        tuple(str(c["name"]) for c in content["categories"]), tuple(c["id"] for c in content["categories"])
    )
    numbers = {key: i for i, key in enumerate(categories.ids)}
    problems = Problems()
    by_image = {a["image_id"]: a for a in content["annotations"]}
    picture_of = finder([*picture_folders(file), *picture_folders(file.with_name(_split(file) + ".json"))])
    labels_of = finder(f for f in (file.with_suffix(""), file.parent / "panoptic", file.parent) if f.is_dir())
    records = []
    for image in content["images"]:
        name = f"image {image['id']} ({image['file_name']})"
        row = by_image.get(image["id"])
        picture, labels = picture_of(image["file_name"]), labels_of(row["file_name"]) if row else None
        if row is None or picture is None or labels is None:
            lacks = (
                "the picture" if picture is None else "the segments" if row is None else f"the ids {row['file_name']}"
            )
            problems.error(file, name, f"{lacks} cannot be found; add what lacks, or remove the record")
            continue
        values = {0: IGNORE}
        for segment in row["segments_info"]:
            if segment["category_id"] not in numbers:
                problems.error(file, name, f"segment {segment['id']} is of the unknown class {segment['category_id']}")
            values[segment["id"]] = IGNORE if segment.get("iscrowd") else numbers.get(segment["category_id"], IGNORE)
        size = (image["height"], image["width"])
        records.append(Record(image["id"], picture, size, [], LabelFile(labels, values)))
    return Dataset(records, categories, file, "panoptic", problems)


def _split(file: Path) -> str:
    return file.stem.removeprefix("panoptic_")
