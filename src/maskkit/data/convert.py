"""Converts a data set of any format to COCO, YOLO or LabelMe, with its splits, images and objects.

Polygons are copied. A mask of pixels becomes the polygon along the edges of its pixels, which rasterises to the same
pixels. What a format cannot hold is counted in the result.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Bool, Float
from rich.progress import track
from scipy import ndimage

from maskkit.data import find_splits, open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, Record, box_of
from maskkit.errors import DataError
from maskkit.files import in_file_name
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle as polygons_to_rle
from maskkit.prediction import Categories

TargetFormat = Literal["coco", "yolo", "labelme"]
Points = Float[np.ndarray, "n 2"]


def convert(
    src: str | Path, dst: str | Path, to: TargetFormat, progress: bool = False, allow_outside: bool = False
) -> dict[str, int]:
    """Write the data set ``src`` in another format to the new folder ``dst``.

    Returns counts of ``images``, ``objects``, ``crowds left out`` (YOLO has no crowds) and ``problems`` of the source,
    see `maskkit.data.check`. The folder appears when it is complete. Raises `DataError` when ``dst`` is not empty or
    ``src`` cannot be read.
    """
    dst = Path(dst).absolute()
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise DataError(f"{dst}: is not empty; choose another folder, or empty this one")
    datasets = _same_classes({name: open_dataset(src, name, allow_outside) for name in find_splits(src) or [""]})
    counts = Counter({"images": 0, "objects": 0, "crowds left out": 0})
    counts["problems"] = len({p for dataset in datasets.values() for p in dataset.problems})
    building = dst.with_name(f".{dst.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        {"coco": _write_coco, "yolo": _write_yolo, "labelme": _write_labelme}[to](datasets, building, counts, progress)
        os.replace(building, dst)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return dict(counts)


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Float[np.ndarray, "k"]]:
    """Flat polygons along the pixel edges of a mask, one per connected part, holes joined by a bridge of width 0.

    COCO's rasteriser turns them into exactly the same pixels.
    """
    parts, _ = ndimage.label(mask)  # type: ignore[misc]
    polygons = []
    for i, window in enumerate(ndimage.find_objects(parts), 1):
        corner = np.array([window[1].start, window[0].start], np.float64)
        polygons.append(bridge([(loop + corner).reshape(-1) for loop in _loops(parts[window] == i)]))
    return polygons


def bridge(polygons: list[Float[np.ndarray, "k"]]) -> Float[np.ndarray, "m"]:
    """One polygon of several: each is joined to those before it by a line, there and back, where they are nearest."""
    joined, *others = [p.reshape(-1, 2) for p in polygons]
    for points in others:
        distance = ((joined[:, None] - points) ** 2).sum(-1)  # (N, M)
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        round_trip = np.concatenate([points[j:], points[: j + 1]])
        joined = np.concatenate([joined[: i + 1], round_trip, joined[i:]])
    return joined.reshape(-1)


def _loops(mask: Bool[np.ndarray, "h w"]) -> list[Points]:
    """Closed lines along the border of a mask, corners only, the mask on the right."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    # neighbour outside the mask (dx, dy); start and end of the edge towards it
    for (dx, dy), (sx, sy), (ex, ey) in (
        ((0, -1), (0, 0), (1, 0)),
        ((1, 0), (1, 0), (1, 1)),
        ((0, 1), (1, 1), (0, 1)),
        ((-1, 0), (0, 1), (0, 0)),
    ):
        rows, columns = np.nonzero(mask & ~padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width])
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            following[x + sx, y + sy].append((x + ex, y + ey))
    loops = []
    while following:
        start = point = next(iter(following))
        walked = []
        while not walked or point != start:
            walked.append(point)
            ahead = following[point].pop()
            if not following[point]:
                del following[point]
            point = ahead
        points = np.array(walked, np.float64)
        step = np.roll(points, -1, 0) - points
        loops.append(points[(step != np.roll(step, 1, 0)).any(1)])
    return loops


def _polygons(annotation: Annotation, size: tuple[int, int]) -> list[Float[np.ndarray, "k"]]:
    """The polygons of the file, or polygons around the pixels of the mask."""
    if isinstance(annotation.segmentation, Sequence):
        return [np.asarray(p, np.float64) for p in annotation.segmentation]
    rle = annotation.rle(size)
    return trace(mask_math.decode([rle], size)[0]) if rle is not None else []


def _one_polygon(annotation: Annotation, size: tuple[int, int]) -> Float[np.ndarray, "k"]:
    """The mask as a single polygon."""
    polygons = _polygons(annotation, size)
    whole = bridge(polygons)
    if len(polygons) > 1:
        union = polygons_to_rle([p.tolist() for p in polygons], size)
        # if parts overlap, the joined polygon has holes
        if polygons_to_rle([whole.tolist()], size)["counts"] != union["counts"]:
            return bridge(trace(mask_math.decode([union], size)[0]))
    return whole


def _same_classes(datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits with one list of classes: those of the first, then the additional ones of the others."""
    categories, *others = [d.categories for d in datasets.values()]
    for known in others:
        added = known.subset(sorted(set(range(len(known))) - known.numbers_in(categories).keys()))
        start = max(categories.ids, default=0) + 1
        categories = Categories(
            categories.names + added.names,
            (*categories.ids, *range(start, start + len(added))),
            categories.things + added.things,
        )
    return {split: dataset.with_categories(categories) for split, dataset in datasets.items()}


def _copied(
    split: str, dataset: Dataset, folder: Path, counts: Counter[str], progress: bool
) -> Iterator[tuple[Record, str]]:
    """Records with the name of the image's copy in ``folder``; no two names differ only in their suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for record in track(dataset.records, f"{split or 'all'}: images") if progress else dataset.records:
        stem = record.path.stem
        while stem.lower() in taken:
            stem = f"{stem}_{in_file_name(record.image_id)}"
        taken.add(stem.lower())
        name = stem + record.path.suffix
        try:
            shutil.copyfile(record.path, folder / name)
        except OSError as error:
            raise DataError(f"{record.path}: cannot be copied ({error.strerror})") from error
        counts["images"] += 1
        yield record, name


def _write_coco(datasets: Mapping[str, Dataset], root: Path, counts: Counter[str], progress: bool) -> None:
    """``train.json``, ``val.json`` (or ``annotations.json``) beside ``images/``."""
    for split, dataset in datasets.items():
        names = {r.image_id: name for r, name in _copied(split, dataset, root / "images" / split, counts, progress)}
        content = dataset.coco()
        for image in content["images"]:
            image["file_name"] = names[image["id"]]
        counts["objects"] += len(content["annotations"])
        (root / f"{split or 'annotations'}.json").write_text(json.dumps(content), encoding="utf-8")


def _write_yolo(datasets: Mapping[str, Dataset], root: Path, counts: Counter[str], progress: bool) -> None:
    """``data.yaml``, ``images/train``, ``labels/train``, ...; a data set without splits is all ``train``."""
    content: dict[str, Any] = {}
    for split, dataset in datasets.items():
        split = split or "train"
        content[split] = f"images/{split}"
        content["names"] = dict(enumerate(dataset.categories.names))
        labels = root / "labels" / split
        labels.mkdir(parents=True)
        for record, name in _copied(split, dataset, root / "images" / split, counts, progress):
            objects = [a for a in record.annotations if not a.crowd]
            counts["objects"] += len(objects)
            counts["crowds left out"] += len(record.annotations) - len(objects)
            lines = [f"{a.label} {' '.join(f'{v:.12g}' for v in _fractions(a, record.size))}\n" for a in objects]
            (labels / name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    (root / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _fractions(annotation: Annotation, size: tuple[int, int]) -> list[float]:
    """The numbers of a YOLO line, as fractions of the image: a polygon, or centre and size of a box."""
    scale = np.array([size[1], size[0]], np.float64)
    if annotation.segmentation is not None:
        return np.clip(_one_polygon(annotation, size).reshape(-1, 2) / scale, 0, 1).reshape(-1).tolist()
    corners = np.clip(np.reshape(box_of(annotation, size), (2, 2)) / scale, 0, 1)
    return np.concatenate([corners.mean(0), corners[1] - corners[0]]).tolist()


def _write_labelme(datasets: Mapping[str, Dataset], root: Path, counts: Counter[str], progress: bool) -> None:
    """A json beside every image, in ``train/``, ``val/`` where there are splits."""
    for split, dataset in datasets.items():
        for record, name in _copied(split, dataset, root / split, counts, progress):
            counts["objects"] += len(record.annotations)
            content = {
                "version": "5.5.0",
                "flags": {},
                "shapes": [shape for a in record.annotations for shape in _shapes(a, record.size, dataset.categories)],
                "imagePath": name,
                "imageData": None,
                "imageHeight": record.size[0],
                "imageWidth": record.size[1],
            }
            (root / split / name).with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


def _shapes(annotation: Annotation, size: tuple[int, int], categories: Categories) -> list[dict[str, Any]]:
    """LabelMe shapes of one object: a polygon per part, or a rectangle flagged as a box without mask."""
    outlines, kind, flags = _polygons(annotation, size), "polygon", {}
    if annotation.segmentation is None:
        outlines, kind, flags = [np.array(box_of(annotation, size))], "rectangle", {"box_only": True}
    if annotation.crowd:
        flags["crowd"] = True
    return [
        {
            "label": categories.names[annotation.label],
            "points": outline.reshape(-1, 2).tolist(),
            "group_id": annotation.id if len(outlines) > 1 else None,
            "shape_type": kind,
            "flags": flags,
        }
        for outline in outlines
    ]
