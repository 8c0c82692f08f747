"""Ground truth and detections drawn from a seed, and what pycocotools says about them."""

import contextlib
import copy
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskkit.eval.instance.metric import Kind
from maskkit.geometry import rle as masks
from maskkit.prediction import ImageId


def text_rle(mask: np.ndarray) -> dict[str, Any]:
    """A dense mask (H, W) as JSON has it."""
    rle = masks.encode(mask[None])[0]
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def rectangle(size: tuple[int, int], x: int, y: int, width: int, height: int) -> np.ndarray:
    """A mask that is 1 in a rectangle."""
    mask = np.zeros(size, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def truth_of(sizes: dict[int, tuple[int, int]], annotations: list[dict], names: dict[int, str]) -> dict[str, Any]:
    """COCO ground truth; annotations are numbered from 1."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": h, "width": w} for i, (h, w) in sizes.items()],
        "annotations": [{"id": n, **a} for n, a in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }


def annotation(image_id: ImageId, category_id: int, mask: np.ndarray, crowd: bool = False) -> dict[str, Any]:
    """A complete annotation of a mask."""
    rle = text_rle(mask)
    x1, y1, x2, y2 = masks.boxes([rle])[0].tolist()
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": rle,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(mask.sum()),
        "iscrowd": int(crowd),
    }


def detection(image_id: ImageId, category_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    """A result row of a mask and its box."""
    row = annotation(image_id, category_id, mask)
    return {key: row[key] for key in ("image_id", "category_id", "segmentation", "bbox")} | {"score": score}


def drawn(seed: int, images: int = 8, classes: int = 3) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Discs in images of many sizes, crowds among them, and what a poor detector might make of them.

    Of the objects some are missed, some found twice, under another class, shrunk or moved; scores have two digits, so
    many are equal. The first image has nothing in it, the last class no object.
    """
    rng = np.random.default_rng(seed)
    sizes = {7 * i + 3: (int(rng.integers(40, 240)), int(rng.integers(40, 240))) for i in range(images)}
    annotations, rows = [], []
    for image_id, (height, width) in list(sizes.items())[1:]:
        y, x = np.mgrid[:height, :width]
        for _ in range(rng.integers(0, 9)):
            cy, cx, radius = rng.random() * height, rng.random() * width, 4 + rng.random() ** 2 * 60
            label = int(rng.integers(1, classes))
            disc = np.hypot(y - cy, x - cx) < radius
            annotations.append(annotation(image_id, label, disc, crowd=rng.random() < 0.15))
            for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2])):
                dy, dx = rng.normal(0, radius / 8, 2)
                found = np.hypot(y - cy - dy, x - cx - dx) < radius * rng.uniform(0.7, 1.1)
                guess = label if rng.random() < 0.8 else int(rng.integers(1, classes + 1))
                rows.append(detection(image_id, guess, found, round(float(rng.random()), 2)))
                rows[-1]["bbox"] = (np.array(rows[-1]["bbox"]) + rng.normal(0, 1, 4)).tolist()
    order = rng.permutation(len(rows))
    return [rows[i] for i in order], truth_of(sizes, annotations, {k: f"class {k}" for k in range(1, classes + 1)})


def numbers(measured: Mapping[str, float | None]) -> list[float]:
    """Metrics with pycocotools' word for none."""
    return [-1 if v is None else v for v in measured.values()]


def official(rows: list[dict[str, Any]], truth: dict[str, Any], kind: Kind) -> COCOeval:
    """The evaluation of pycocotools, accumulated and summarised."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = _index(copy.deepcopy(truth))
        nothing = _index({**copy.deepcopy(truth), "annotations": []})  # loadRes fails without a row
        found = ground.loadRes(copy.deepcopy(rows)) if rows else nothing  # type: ignore[arg-type]
        judge = COCOeval(ground, found, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def _index(dataset: Any) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco
