"""Writes Cityscapes: ``leftImg8bit/train/images/`` and ``gtFine/train/images/``; without splits all is ``train``.

Classes whose names are all of Cityscapes' get its values. Others get the values 1, 2, ... and are in ``classes.json``.
"""

from typing import Any

import numpy as np
from PIL import Image

from maskkit.data import cityscapes_classes as known
from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.outlines import bridge, one_polygon, trace
from maskkit.data.convert.regions import LabelMap, label_map, layers, refuse_tags, without_background
from maskkit.data.label_map import IGNORE
from maskkit.data.records import Annotation, Record
from maskkit.errors import DataError
from maskkit.files import write_json
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories

_MOST = 64
"""Values of classes: ids of objects, 1000 times as large, have 16 bits."""


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Every pixel has one object at most; crowds are groups, boxes without a mask are left out."""
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    categories = next(iter(datasets.values())).categories
    own = not _official(datasets, categories)
    values = [i if own else known.NAMES.index(name) for i, name in enumerate(categories.titles, 1)]
    if own:
        if len(categories) > _MOST:
            raise DataError(f"Cityscapes holds at most {_MOST} classes, not {len(categories)}; write coco")
        triples = zip(values, categories.titles, categories.things, strict=True)
        rows = [{"id": value, "name": name, "isthing": int(thing)} for value, name, thing in triples]
        write_json(job.root / "classes.json", {"classes": rows, "void": {"id": IGNORE}})
    for split, dataset in datasets.items():
        images, labels = (job.root / kind / (split or "train") / "images" for kind in ("leftImg8bit", "gtFine"))
        labels.mkdir(parents=True)
        copy, ids = job.copier(images), {}
        for record in job.records(split, dataset):
            try:
                classes, objects, drawn = _painted(job, record, categories, values, own)
            except DataError as error:
                job.fail(record, error)
                continue
            name = copy(record)
            stem, _, suffix = name.rpartition(".")
            (images / name).rename(images / f"{stem}_leftImg8bit.{suffix}")
            ids[f"{stem}_leftImg8bit.{suffix}"] = record.image_id
            Image.fromarray(classes).save(labels / f"{stem}_gtFine_labelIds.png", format="PNG")
            Image.fromarray(objects).save(labels / f"{stem}_gtFine_instanceIds.png", format="PNG")
            content = {"imgHeight": record.size[0], "imgWidth": record.size[1], "objects": drawn}
            write_json(labels / f"{stem}_gtFine_polygons.json", content)
        job.number(ids)


def _official(datasets: Splits, categories: Categories) -> bool:
    """Whether the classes are Cityscapes' own, things being things."""
    flags = dict(zip(known.CITYSCAPES.names, known.CITYSCAPES.things, strict=True))
    used = {a.label for d in datasets.values() for r in d.records for a in r.annotations}
    same = all(flags.get(categories.titles[n]) == categories.things[n] for n in used)
    return same and set(categories.titles) <= flags.keys()


def _painted(
    job: Job, record: Record, categories: Categories, values: list[int], own: bool
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """``labelIds`` (H, W) uint8, ``instanceIds`` (H, W) uint16, and the polygons. Raises `DataError`."""
    found = label_map(record, categories)
    classes = _base(found, record.size, values, own)
    numbers, visible = layers(job, record)
    job.counts["boxes without a mask left out"] += sum(a.segmentation is None for a in record.annotations)
    objects = classes.astype(np.uint16)
    counted = dict.fromkeys(range(len(categories)), 0)
    crowds: list[int] = []
    for i in visible:
        annotation, here = record.annotations[i], numbers == i + 1
        value = values[annotation.label]
        classes[here] = objects[here] = value
        if annotation.crowd or not categories.things[annotation.label]:
            crowds += [annotation.label] * annotation.crowd
            continue
        if counted[annotation.label] > 999:
            raise DataError(f"{record.path}: Cityscapes holds at most 1000 objects of a class in an image")
        objects[here] = 1000 * value + counted[annotation.label]
        counted[annotation.label] += 1
    job.counts["objects"] += sum(counted.values())
    job.counts["crowds of a class joined to one"] += len(crowds) - len(set(crowds))
    job.counts["images whose background became unknown"] += not own and bool((classes == 0).any())
    return classes, objects, _polygons(record, found, visible, categories)


def _base(found: LabelMap | None, size: tuple[int, int], values: list[int], own: bool) -> np.ndarray:
    """The label map of the file in values of ``labelIds``; 0 without one."""
    if found is None:
        return np.zeros(size, np.uint8)
    table = np.zeros(256, np.uint8)
    table[: found.classes] = values
    table[IGNORE] = IGNORE if own else 0
    return table[found.labels]


def _polygons(
    record: Record, found: LabelMap | None, visible: list[int], categories: Categories
) -> list[dict[str, Any]]:
    """The regions of the label map and the objects, later ones in front of earlier ones: crowds first, large first."""
    regions = [(n, found.of(n)) for n in found.present] if found is not None else []
    rows = [(categories.titles[n], bridge(trace(region))) for n, region in regions]
    shown: list[Annotation] = [record.annotations[i] for i in visible]
    areas = {id(a): mask_math.area([rle])[0] for a in shown if (rle := a.rle(record.size)) is not None}
    for annotation in sorted(shown, key=lambda a: (not a.crowd, -areas[id(a)])):
        name = categories.titles[annotation.label] + "group" * annotation.crowd
        rows.append((name, one_polygon(annotation, record.size)))
    return [{"label": name, "polygon": outline.reshape(-1, 2).tolist()} for name, outline in rows]
