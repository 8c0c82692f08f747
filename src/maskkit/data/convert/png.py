"""Writes label maps: ``images/train``, ``masks/train``, ... and ``classes.json``; without splits no sub folders."""

from dataclasses import replace

import numpy as np
from PIL import Image

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import label_map, layers, mapped, refuse_tags
from maskkit.data.label_map import BACKGROUND_NAME, IGNORE
from maskkit.data.records import Record
from maskkit.errors import DataError
from maskkit.files import write_json
from maskkit.geometry.paint import class_colours
from maskkit.prediction import Categories


def write(job: Job, datasets: Splits) -> None:
    """Write the splits. Values are the ids of the classes, or their numbers where ids are above 254 or 0 is taken.

    Objects of one class are merged into one region; crowds, and boxes without a mask, become unknown pixels.
    """
    refuse_tags(job, datasets)
    instances = not mapped(datasets)
    views = {split: dataset.as_semantic() for split, dataset in datasets.items()}
    views = dict(zip(views, _one_list(list(views.values())), strict=True))
    categories = next(iter(views.values())).categories
    values = list(categories.ids)
    ground = [c.id for c in categories if c.name == BACKGROUND_NAME]
    if not all(0 <= i < IGNORE for i in values) or ground not in ([], [0]):
        values = list(range(len(values)))
    table = np.full(256, IGNORE, np.uint8)
    table[: len(values)] = values
    palette = np.full((256, 3), 255, np.uint8)
    palette[values] = class_colours(len(values))
    for split, view in views.items():
        masks = job.root / "masks" / split
        masks.mkdir(parents=True)
        copy = job.copier(job.root / "images" / split)
        objects, ids = {record.path: record for record in datasets[split].records}, {}
        for record in job.records(split, view):
            try:
                assert record.semantic is not None, "as_semantic gives every record a label map"
                labels = table[record.semantic.read(record.size)]
                if instances:
                    _count(job, objects[record.path], datasets[split].categories)
            except DataError as error:
                job.fail(record, error)
                continue
            image = Image.fromarray(labels)
            image.putpalette(palette.tobytes())
            ids[name := copy(record)] = record.image_id
            image.save((masks / name).with_suffix(".png"), format="PNG")
        job.number(ids)
    classes = [{"id": value, "name": name} for value, name in zip(values, categories.names, strict=True)]
    write_json(job.root / "classes.json", {"classes": classes, "void": {"id": IGNORE, "name": "unknown"}})


def _one_list(views: list) -> list:
    """The label maps with one list of classes, also where only one split has pixels without a class."""
    longest = max(views, key=lambda view: len(view.categories)).categories
    return [view.with_categories(longest) for view in views]


def _count(job: Job, record: Record, categories: Categories) -> None:
    """Count what a label map cannot hold of the objects of an image."""
    masked = [a for a in record.annotations if a.segmentation is not None and categories.things[a.label]]
    job.counts["objects merged into label maps"] += sum(not a.crowd for a in masked)
    job.counts["crowds left out"] += sum(a.crowd for a in record.annotations)
    job.counts["boxes without a mask left out"] += sum(a.segmentation is None for a in record.annotations)
    if label_map(record, categories) is None:
        layers(job, replace(record, annotations=masked))
