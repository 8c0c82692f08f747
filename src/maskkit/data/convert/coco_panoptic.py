"""Writes COCO's panoptic format: ``panoptic_train.json`` and a folder of id PNGs of the same name, ``images/train``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import LabelMap, as_stuff, label_map, layers, mapped, refuse_tags
from maskkit.data.dataset import Dataset
from maskkit.data.records import Record
from maskkit.errors import DataError
from maskkit.files import write_json
from maskkit.prediction import Categories


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Objects and, in label maps without objects, the region of each class become segments.

    Pixels of no segment are unknown in this format; boxes without a mask are left out.
    """
    refuse_tags(job, datasets)
    for split, dataset in (as_stuff(datasets) if mapped(datasets) else datasets).items():
        name = f"panoptic_{split}" if split else "panoptic"
        pngs = job.root / name
        pngs.mkdir()
        copy = job.copier(job.root / "images" / split)
        images, rows = [], []
        for record in job.records(split, dataset):
            try:
                ids, segments = _segments(job, record, dataset)
            except DataError as error:
                job.fail(record, error)
                continue
            file = copy(record)
            png = (pngs / file).with_suffix(".png")
            colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)  # (H, W, 3)
            Image.fromarray(colours).save(png, format="PNG")
            height, width = record.size
            images.append({"id": record.image_id, "file_name": file, "height": height, "width": width})
            rows.append({"image_id": record.image_id, "file_name": png.name, "segments_info": segments})
            job.counts["objects"] += sum(not s["iscrowd"] for s in segments)
        categories = [{"isthing": 1} | c for c in dataset.categories.to_coco()]
        content = {"images": images, "annotations": rows, "categories": categories}
        write_json(job.root / f"{name}.json", content)


def _segments(job: Job, record: Record, dataset: Dataset) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The image of ids (H, W) and its segments."""
    found, known = label_map(record, dataset.categories), dataset.categories
    if found is not None and not record.annotations:
        return _of_map(job, found, known)
    numbers, visible = layers(job, record)
    job.counts["boxes without a mask left out"] += sum(a.segmentation is None for a in record.annotations)
    job.counts["images whose background became unknown"] += bool((numbers == 0).any()) and found is None
    segments = _rows(
        numbers, [(i + 1, record.annotations[i].label, record.annotations[i].crowd) for i in visible], known
    )
    return numbers, list(segments)


def _of_map(job: Job, found: LabelMap, known: Categories) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The regions of the classes of a label map as segments."""
    numbers = np.where(found.labels < found.classes, found.labels.astype(np.int64) + 1, 0)
    job.counts["images whose background became unknown"] += found.background
    segments = list(_rows(numbers, [(n + 1, n, False) for n in found.present], known))
    job.counts["regions of label maps as segments"] += len(segments)
    return numbers, segments


def _rows(numbers: np.ndarray, segments: list[tuple[int, int, bool]], known: Categories) -> Iterator[dict[str, Any]]:
    """Records of segments: (value in the image of ids, class number, whether a crowd)."""

    windows = ndimage.find_objects(numbers)
    for value, label, crowd in segments:
        rows, columns = windows[value - 1]
        yield {
            "id": value,
            "category_id": known.ids[label],
            "iscrowd": int(crowd),
            "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            "area": int((numbers[rows, columns] == value).sum()),
        }
