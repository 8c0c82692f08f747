"""Writes Pascal VOC: ``JPEGImages``, ``Annotations/*.xml``, ``SegmentationObject`` and ``SegmentationClass``.

The splits are lists in ``ImageSets/Segmentation``; the classes are in ``class_names.txt``.
"""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import MOST, LabelMap, label_map, layers, refuse_tags, without_background
from maskkit.data.label_map import IGNORE
from maskkit.data.painted import PaintedObjects
from maskkit.data.records import Annotation, Record, box_of
from maskkit.errors import DataError
from maskkit.geometry.paint import class_colours
from maskkit.prediction import Categories

_LISTS = Path("ImageSets", "Segmentation")
_RESERVED = ("__ignore__", "_background_")


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Every pixel has one object at most; stuff is in ``SegmentationClass`` alone.

    Crowds are unknown pixels. In an image with masks, boxes without a mask are in the xml alone. Raises `DataError`
    for class names that a line of text cannot hold.
    """
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    categories = next(iter(datasets.values())).categories
    _check_names(categories)
    for folder in ("Annotations", "SegmentationClass", "SegmentationObject", _LISTS):
        (job.root / folder).mkdir(parents=True)
    copy = job.copier(job.root / "JPEGImages", spaces=False)
    for split, dataset in datasets.items():
        listed, ids = [], {}
        for record in job.records(split, dataset):
            try:
                objects, classes, kept = _painted(job, record, categories)
            except DataError as error:
                job.fail(record, error)
                continue
            name = copy(record)
            for folder, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
                if values is not None:
                    _save(values, (job.root / folder / name).with_suffix(".png"))
            xml = _xml(record, name, kept, categories, objects is not None)
            xml.write((job.root / "Annotations" / name).with_suffix(".xml"), encoding="utf-8")
            listed.append(f"{Path(name).stem}\n")
            ids[Path(name).stem] = record.image_id
            job.counts["objects"] += len(kept)
        (job.root / _LISTS / f"{split or 'trainval'}.txt").write_text("".join(listed), encoding="utf-8")
        job.number(ids)
    (job.root / "class_names.txt").write_text("".join(f"{n}\n" for n in categories.titles), encoding="utf-8")


def _check_names(categories: Categories) -> None:
    if len(categories) > MOST:
        raise DataError(f"VOC holds at most {MOST} classes, not {len(categories)}; write coco, yolo or labelme")
    for name in categories.titles:
        if name != name.strip() or not name or not name.isprintable() or name in _RESERVED:
            raise DataError(f"VOC cannot hold the class name {name!r}; rename it, or write coco, yolo or labelme")


def _painted(
    job: Job, record: Record, categories: Categories
) -> tuple[np.ndarray | None, np.ndarray | None, list[Annotation]]:
    """Values of ``SegmentationObject`` and of ``SegmentationClass``, None without one, and the objects that are kept.

    Raises `DataError` when a mask or the label map cannot be read.
    """
    found = label_map(record, categories)
    things = [a for a in record.annotations if categories.things[a.label] and not a.crowd]
    boxes = [a for a in things if a.segmentation is None]
    masked = [a for a in things if a.segmentation is not None]
    job.counts["crowds left out"] += sum(a.crowd for a in record.annotations)
    if len(masked) > MOST:
        raise DataError(f"{record.path}: VOC holds at most {MOST} objects with masks in an image, not {len(masked)}")
    objects, kept = None, masked
    if masked:
        numbers, visible = layers(job, replace(record, annotations=masked))
        order = np.zeros(len(masked) + 1, np.uint8)
        order[[i + 1 for i in visible]] = np.arange(1, len(visible) + 1)
        objects, kept = order[numbers], [masked[i] for i in visible]
        job.counts["boxes without a mask that only the xml has"] += len(boxes)
    classes = _classes(record, found, categories)
    if objects is not None and classes is not None:
        objects[(objects == 0) & (classes == IGNORE)] = IGNORE
        for i, annotation in enumerate(kept, 1):  # the class of an object is that of its pixels
            classes[objects == i] = annotation.label + 1
    return objects, classes, kept + boxes


def _classes(record: Record, found: LabelMap | None, categories: Categories) -> np.ndarray | None:
    """The label map of the file, or one of the masks; None when neither is known."""
    if found is not None:
        table = np.full(256, IGNORE, np.uint8)
        table[: found.classes] = np.arange(1, found.classes + 1)
        table[found.classes] = 0
        return table[found.labels]
    if not any(a.segmentation is not None for a in record.annotations):
        return None
    count = len(categories)
    labels = PaintedObjects(record.annotations, count).read(record.size)
    return np.where(labels == IGNORE, IGNORE, np.where(labels == count, 0, labels + 1)).astype(np.uint8)


def _save(values: np.ndarray, file: Path) -> None:
    image = Image.fromarray(values)
    palette = np.concatenate([np.zeros((1, 3), np.uint8), class_colours(MOST), np.full((1, 3), 255, np.uint8)])
    image.putpalette(palette.tobytes())
    image.save(file, format="PNG")


def _xml(
    record: Record, name: str, objects: list[Annotation], categories: Categories, segmented: bool
) -> ElementTree.ElementTree:
    """VOC's description of an image; corners of boxes count from 1 and include the last pixel."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", record.size[1]), ("height", record.size[0]), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(root, "segmented").text = str(int(segmented))
    for annotation in objects:
        node = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(node, "name").text = categories.titles[annotation.label]
        ElementTree.SubElement(node, "difficult").text = "0"
        box = ElementTree.SubElement(node, "bndbox")
        x1, y1, x2, y2 = box_of(annotation, record.size)
        for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, key).text = f"{value:.10g}"
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)
