"""Writes CVAT for images 1.1: ``annotations.xml`` and ``images/``; each split is a subset with its own folder.

Polygons stay polygons; other masks become run-length masks, which can hold holes and single pixels.
"""

from collections.abc import Iterator
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np

from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.regions import labelled, refuse_names, refuse_tags, whole_ids, without_background
from maskkit.data.records import Annotation, Record, box_of
from maskkit.geometry.rle import decode_region
from maskkit.prediction import Categories

_KEPT = {"source": "manual", "occluded": "0", "z_order": "0"}


def write(job: Job, datasets: Splits) -> None:
    """Write the splits; classes of one name are told apart by their ids.

    Raises `DataError` for class names that an attribute in xml cannot hold.
    """
    refuse_tags(job, datasets)
    datasets = without_background(datasets)
    categories = next(iter(datasets.values())).categories
    refuse_names(job, categories)
    names = categories.titles
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    _list(SubElement(SubElement(SubElement(root, "meta"), "task"), "labels"), categories)
    numbers = whole_ids(job, datasets)

    def nodes(record: Record) -> list[list[Element]]:
        return [list(_nodes(a, record.size, names[a.label], n)) for n, a in enumerate(record.annotations, 1)]

    for split, dataset in datasets.items():
        copy = job.copier(job.root / "images" / split)
        for record, objects in labelled(job, split, dataset, nodes):
            key = str(numbers[split, record.image_id])
            image = SubElement(root, "image", {"id": key, "name": copy(record)} | ({"subset": split} if split else {}))
            image.set("width", str(record.size[1]))
            image.set("height", str(record.size[0]))
            for parts in objects:
                image.extend(parts)
            job.counts["objects"] += len(objects)
    indent(root)
    ElementTree(root).write(job.root / "annotations.xml", encoding="utf-8", xml_declaration=True)


def _list(labels: Element, categories: Categories) -> None:
    """The classes, each with the attribute that marks crowds."""
    for name in categories.titles:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        attribute = SubElement(SubElement(label, "attributes"), "attribute")
        values = (("name", "is_crowd"), ("mutable", "False"), ("input_type", "checkbox"), ("default_value", "false"))
        for key, value in values:
            SubElement(attribute, key).text = value


def _nodes(annotation: Annotation, size: tuple[int, int], name: str, group: int) -> Iterator[Element]:
    """A node for each part of an object."""
    shape, kept = annotation.segmentation, {"label": name, **_KEPT}
    if shape is None:
        sides = zip(("xtl", "ytl", "xbr", "ybr"), box_of(annotation, size), strict=True)
        nodes = [Element("box", kept | {side: repr(float(value)) for side, value in sides})]
    elif isinstance(shape, list | tuple):
        joined = {"group_id": str(group)} if len(shape) > 1 else {}
        nodes = [Element("polygon", kept | joined | {"points": _points(part)}) for part in shape]
    else:
        nodes = [Element("mask", kept | _runs(annotation, size))]
    for node in nodes:
        if annotation.crowd:
            SubElement(node, "attribute", {"name": "is_crowd"}).text = "true"
        yield node


def _points(part: np.ndarray) -> str:
    return ";".join(f"{x!r},{y!r}" for x, y in np.asarray(part, np.float64).reshape(-1, 2).tolist())


def _runs(annotation: Annotation, size: tuple[int, int]) -> dict[str, str]:
    """Run lengths of the mask, background first, row by row in its box."""
    rle = annotation.rle(size)
    assert rle is not None
    region, top, left = decode_region(rle)
    flat = region.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes.tolist(), len(flat)]).tolist()
    sides = {"left": left, "top": top, "width": region.shape[1], "height": region.shape[0]}
    return {"rle": ", ".join(map(str, [0, *runs] if flat[0] else runs))} | {k: str(v) for k, v in sides.items()}
