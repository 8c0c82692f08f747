"""Writes a project of VIA 2: ``via_project.json`` beside the images, in ``train/``, ``val/`` where there are splits."""

from typing import Any

import numpy as np

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.outlines import polygons_of
from maskkit.data.convert.regions import labelled, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of
from maskkit.files import write_json


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids."""
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    names = next(iter(datasets.values())).categories.titles

    def regions_of(record: Record) -> list[dict[str, Any]]:
        return [r for n, a in enumerate(record.annotations, 1) for r in _regions(a, record.size, names[a.label], n)]

    for split, dataset in datasets.items():
        copy = job.copier(job.root / split)
        images = {}
        for record, regions in labelled(job, split, dataset, regions_of):
            name = copy(record)
            weight = (job.root / split / name).stat().st_size
            row = {"filename": name, "size": weight, "regions": regions}
            images[f"{name}{weight}"] = row | {"file_attributes": {"image_id": record.image_id}}
            job.counts["objects"] += len(record.annotations)
        write_json(job.root / split / "via_project.json", _project(images, names))


def _project(images: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    text = {"type": "text", "description": "", "default_value": ""}
    choice = {"type": "dropdown", "description": "", "options": dict.fromkeys(names, ""), "default_options": {}}
    return {
        "_via_settings": {"core": {"filepath": {}, "default_filepath": ""}, "project": {"name": "maskkit"}},
        "_via_img_metadata": images,
        "_via_attributes": {
            "region": {"class": choice, "part_of": text, "is_crowd": text},
            "file": {"image_id": text},
        },
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(images),
    }


def _regions(annotation: Annotation, size: tuple[int, int], name: str, group: int) -> list[dict[str, Any]]:
    """The regions of one object: a polygon per part, or a rectangle where the mask is unknown."""
    attributes = {"class": name} | ({"is_crowd": "true"} if annotation.crowd else {})
    if annotation.segmentation is None:
        x1, y1, x2, y2 = box_of(annotation, size)
        shape = {"name": "rect", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return [{"shape_attributes": shape, "region_attributes": attributes}]
    outlines = [np.asarray(outline, np.float64).reshape(-1, 2) for outline in polygons_of(annotation, size)]
    attributes |= {"part_of": str(group)} if len(outlines) > 1 else {}
    return [
        {
            "shape_attributes": {
                "name": "polygon",
                "all_points_x": outline[:, 0].tolist(),
                "all_points_y": outline[:, 1].tolist(),
            },
            "region_attributes": attributes,
        }
        for outline in outlines
    ]
