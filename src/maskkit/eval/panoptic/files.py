"""COCO's panoptic results: a JSON file of segments and a folder of id PNGs. In memory, a segment is a row."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.formats import coco
from maskkit.data.formats.coco_panoptic import MALFORMED, id_folders, segments_by_id
from maskkit.data.label_map import IdImage
from maskkit.data.places import locate
from maskkit.data.rules import brief
from maskkit.errors import DataError
from maskkit.eval.rows import Known, Row, Unchecked, named_rows, place, read_json, rows_in, sound_rows, write_rows
from maskkit.files import replacing, write_json
from maskkit.geometry import rle as rle_codec
from maskkit.prediction import Categories

NEEDED = ("segmentation",)


def data_file(path: str | Path, split: str | None) -> Path:
    """The panoptic file of a split in a folder that has one, beside which files of objects may lie; else ``path``."""
    path = Path(path)
    file = coco.find(path, segments=True).get(split) if path.is_dir() else None
    return file if file is not None and file.name.startswith("panoptic_") else path


def read_results(path: Path, dataset: Dataset) -> list[Row]:
    """The rows of a results file: COCO's panoptic JSON with its folder of id PNGs, or a list of rows.

    Raises `DataError` for the first bad entry, and for an image of ``dataset`` without segments.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        return rows_in(content, path, Known.of(dataset), NEEDED)
    try:
        rows = _segments(content, path, dataset)
    except MALFORMED as error:
        raise DataError(f"{path}: {brief(f'has no {error}' if isinstance(error, KeyError) else str(error))}") from None
    return sound_rows(rows, Known.of(dataset), NEEDED, str(path))


def _segments(content: Mapping[str, Any], file: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """The segments in ``content``, which was read from ``file``, as rows. Raises one of `MALFORMED`."""
    known = Known.of(dataset)
    rows = []
    by_image = {ids.key(a["image_id"]): a for a in content["annotations"]}
    ((image_id, entries),) = Counter(ids.key(a["image_id"]) for a in content["annotations"]).most_common(1) or ((0, 1),)
    if entries > 1:
        raise ValueError(f"has {entries} entries for image {image_id}; keep one")
    names = [str(a["file_name"]) for a in by_image.values()]
    pngs = dict(zip(by_image, locate(names, id_folders(file)), strict=True))
    for record in dataset.records:
        found = by_image.get(ids.key(record.image_id))
        if found is None:
            raise ValueError(f"has no segments for image {record.image_id}; predict every image of the data")
        if isinstance(png := pngs[ids.key(record.image_id)], str):
            raise ValueError(f"the id PNG {found['file_name']} of image {record.image_id} is missing: {png}")
        segments = segments_by_id(found)
        rles = IdImage(png, frozenset(segments)).rles(record.size)
        for number, segment in segments.items():
            row: dict[str, Any] = {"image_id": record.image_id, "category_id": segment["category_id"]}
            row["category_id"] = place(row, known)[1]
            row["segmentation"] = rles[number]
            rows.append(row | ({"score": segment["score"]} if "score" in segment else {}))
    return rows


def write_results(folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write ``predictions.json``, ``categories.json``, ``panoptic.json`` and ``panoptic/``, a PNG of ids per image.

    ``images`` are COCO's image records.
    """
    write_rows(folder, rows, categories)
    write_segments(folder / "panoptic.json", rows, images, categories)


def write_segments(file: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    """Write segments as COCO's panoptic results: ``file``, and a PNG of ids per image in the folder of the same name.

    ``images`` are COCO's image records. The JSON is written last, so that it never refers to a missing PNG.
    """
    things = dict(zip(categories.ids, categories.things, strict=True))
    annotations = []
    for stem, image, found in named_rows(rows, images):
        size = (image["height"], image["width"])
        ids, segments = np.zeros(size, np.uint32), []
        for number, row in enumerate(found, 1):
            ids[rle_codec.decode([row["segmentation"]], size)[0]] = number
            category = row["category_id"]
            segment = {"id": number, "category_id": category, "isthing": int(things[category])}
            segments.append(segment | ({"score": row["score"]} if "score" in row else {}))
        with replacing(file.with_suffix("") / f"{stem}.png") as temporary:
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)  # (H, W, 3)
            Image.fromarray(colours).save(temporary, format="PNG")
        annotations.append({"image_id": image["id"], "file_name": f"{stem}.png", "segments_info": segments})
    write_json(file, {"annotations": annotations, "categories": categories.to_coco()})
