"""Writes Label Studio: ``train.json``, ``val.json`` (or ``tasks.json``), ``images/`` and ``label_config.xml``.

The addresses of the images are those of local files relative to the folder. Polygons of one part stay polygons; other
masks become brushes.
"""

import itertools
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import labelled, pixels_of, refuse_names, refuse_tags, without_background
from maskkit.data.records import Annotation, Record, box_of
from maskkit.files import write_json
from maskkit.geometry.rle import decode
from maskkit.prediction import Categories

_BITS = (3, 4, 8, 16)
"""Bits of the four sizes of lengths."""


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids."""
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    categories = next(iter(datasets.values())).categories
    refuse_names(job, categories)
    names = categories.titles
    _config(categories).write(job.root / "label_config.xml", encoding="utf-8")
    number = 0

    def regions_of(record: Record) -> list[dict[str, Any]]:
        made = (_region(job, a, record.size, names[a.label], n) for n, a in enumerate(record.annotations, 1))
        return [region for region in made if region is not None]

    for split, dataset in datasets.items():
        copy = job.copier(job.root / "images" / split)
        tasks = []
        for record, regions in labelled(job, split, dataset, regions_of):
            number += 1
            place = quote("/".join(part for part in ("images", split, copy(record)) if part))
            data = {"image": f"/data/local-files/?d={place}", "image_id": record.image_id}
            tasks.append({"id": number, "data": data, "annotations": [{"result": regions, "was_cancelled": False}]})
            job.counts["objects"] += len(regions)
        write_json(job.root / f"{split or 'tasks'}.json", tasks)


def _config(categories: Categories) -> ElementTree:
    """The labelling interface: an image, and each tool with all classes."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    for tool in ("PolygonLabels", "BrushLabels", "RectangleLabels"):
        labels = SubElement(view, tool, name=tool.lower(), toName="image")
        for name in categories.titles:
            SubElement(labels, "Label", value=name)
    indent(view)
    return ElementTree(view)


def _region(job: Job, annotation: Annotation, size: tuple[int, int], name: str, place: int) -> dict[str, Any] | None:
    """One region: a polygon, a brush, or a rectangle where the mask is unknown; None for a brush without a pixel.

    ``place`` is its place in the image, from 1. It gives an id to the regions of label maps, which have none: Label
    Studio takes regions with the same id for one.
    """
    shape, percent = annotation.segmentation, 100 / np.array([size[1], size[0]], np.float64)
    if shape is None:
        (x1, y1), (x2, y2) = (np.reshape(box_of(annotation, size), (2, 2)) * percent).tolist()
        kind, value = "rectangle", {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    elif isinstance(shape, list | tuple) and len(shape) == 1:
        points = (np.asarray(shape[0], np.float64).reshape(-1, 2) * percent).tolist()
        kind, value = "polygon", {"points": points, "closed": True}
    else:
        job.counts["polygons of several parts as pixels"] += isinstance(shape, list | tuple)
        if (rle := pixels_of(job, annotation, size)) is None:
            return None
        kind, value = "brush", {"format": "rle", "rle": pack(decode([rle], size)[0])}
    region = {
        "id": str(annotation.id or f"region-{place}"),
        "type": f"{kind}labels",
        "from_name": f"{kind}labels",
        "to_name": "image",
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "value": value | {f"{kind}labels": [name]},
    }
    return region | ({"meta": {"text": ["crowd"]}} if annotation.crowd else {})


def pack(mask: np.ndarray) -> list[int]:
    """The bytes of a brush: run lengths of four values for each pixel of the mask (H, W), row by row."""
    flat = mask.reshape(-1)
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    bits = [f"{4 * len(flat):032b}", f"{7:05b}", *(f"{bits - 1:04b}" for bits in _BITS)]
    for start, end in itertools.pairwise(edges):
        left, value = 4 * (end - start), 255 if flat[start] else 0
        while left:
            length = min(left, 1 << _BITS[-1])
            size = next(i for i, bits in enumerate(_BITS) if length <= 1 << bits)
            bits.append(f"1{size:02b}{length - 1:0{_BITS[size]}b}{value:08b}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode("ascii"), np.uint8) - ord("0")).tolist()
