"""COCO's protocol by maskkit and by three other libraries, on the same detections and ground truth, without torch."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_erosion, shift

from maskkit.data import open_truth
from maskkit.eval.instance.files import read_results
from maskkit.eval.instance.metric import KINDS, evaluate
from maskkit.geometry import polygons
from maskkit.geometry import rle as rle_codec

Numbers = np.ndarray
"""The twelve numbers of boxes, then those of masks."""


def truth_of(data: Path) -> dict[str, Any]:
    """Ground truth as COCO's JSON types, with the polygons of the file."""
    return json.loads(json.dumps(open_truth(data).truth(), default=lambda counts: counts.decode()))


def disturbed(truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Result rows made from the ground truth by random errors; scores have two digits, so that many are equal."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    rows = []
    for annotation in truth["annotations"]:
        mask = rle_codec.decode(
            [as_rle(annotation["segmentation"], sizes[annotation["image_id"]])], sizes[annotation["image_id"]]
        )[0]
        for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2])):
            found = shift(mask, rng.integers(-6, 7, 2), order=0)
            found = binary_erosion(found, iterations=int(rng.integers(1, 4))) if rng.random() < 0.5 else found
            label = annotation["category_id"] if rng.random() < 0.85 else int(rng.choice(ids))
            if found.any():
                rows.append(detection(annotation["image_id"], label, found, round(float(rng.random()), 2)))
    return [rows[i] for i in rng.permutation(len(rows))]


def as_rle(shape: Any, size: tuple[int, int]) -> rle_codec.Rle:
    """A segmentation of any form as compressed run lengths."""
    if isinstance(shape, list):
        return polygons.to_rle(shape, size)
    return rle_codec.from_counts(shape["counts"], size) if isinstance(shape["counts"], list) else shape


def detection(image_id: int, category_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    """A result row of a mask (H, W) and its box."""
    rle = rle_codec.encode(mask[None])[0]
    x1, y1, x2, y2 = rle_codec.boxes([rle])[0].tolist()
    row = {"image_id": image_id, "category_id": category_id, "segmentation": rle_codec.to_text(rle)}
    return {**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def by_maskkit(rows: Any, truth: Any) -> Numbers:
    """Of rows and ground truth in memory, or of the files of them; with the table of every class."""
    if isinstance(truth, Path):
        truth = open_truth(truth).truth()
        rows = read_results(rows, truth)
    result = evaluate(rows, truth)
    assert result.bbox is not None
    assert result.segm is not None
    return np.array([*result.bbox.values(), *result.segm.values()], np.float64)


def by_library(coco: Any, evaluation: Any) -> Callable[[Any, Any], Numbers]:
    """The same by the classes of pycocotools, or those of a library with the same interface."""

    def numbers(rows: Any, truth: Any) -> Numbers:
        with contextlib.redirect_stdout(io.StringIO()):
            if isinstance(truth, Path):
                ground, rows = coco(str(truth)), str(rows)
            elif coco.__module__.startswith("pycocotools"):
                ground = coco()
                ground.dataset = truth
                ground.createIndex()
            else:
                ground = coco(truth)
            found = ground.loadRes(rows)
            stats = []
            for kind in KINDS:
                run = evaluation(ground, found, kind)
                run.evaluate()
                run.accumulate()
                run.summarize()
                stats.append(np.asarray(run.stats, np.float64)[:12])
        return np.concatenate(stats)

    return numbers


def sides() -> dict[str, Callable[[Any, Any], Numbers]]:
    """Ours and every library that is installed."""
    import pycocotools.coco
    import pycocotools.cocoeval
    from faster_coco_eval import COCO, COCOeval_faster

    found = {
        "pycocotools": by_library(pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
        "faster-coco-eval": by_library(COCO, COCOeval_faster),
        "maskkit": by_maskkit,
    }
    try:
        import hotcoco
    except ImportError:
        return found
    return {"hotcoco": by_library(hotcoco.COCO, hotcoco.COCOeval), **found}


def calls(data: Path, files: Path | None, rounds: int, seed: int = 0) -> tuple[dict[str, Callable[[], Numbers]], str]:
    """A call of each library, and what is measured in words.

    They take JSON types in memory, fresh ones in each of ``rounds`` and the one before, because some libraries change
    them; with a folder ``files``, they read two files there.
    """
    truth = truth_of(data)
    rows = disturbed(truth, seed)
    what = f"{len(truth['images'])} images, {len(truth['annotations'])} objects, {len(rows)} detections"
    if files is not None:
        paths = files / "predictions.json", files / "truth.json"
        for path, content in zip(paths, (rows, truth), strict=True):
            path.write_text(json.dumps(content))
        return {name: lambda side=side: side(*paths) for name, side in sides().items()}, what
    made = {name: iter([copy.deepcopy((rows, truth)) for _ in range(rounds + 1)]) for name in sides()}
    return {name: lambda side=side, name=name: side(*next(made[name])) for name, side in sides().items()}, what
