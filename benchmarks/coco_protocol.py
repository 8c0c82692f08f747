"""Compare the twelve COCO metrics with those of pycocotools on real ground truth with crowds.

    python benchmarks/coco_protocol.py --data instances_val2017.json

Any COCO annotation file with crowds will do, e.g. that of COCO val2017 (cocodataset.org). Detections are made from the
ground truth with a seed: objects are missed, found twice, moved, shrunk or given another class; scores have two digits,
so that many are equal. Prints the largest difference of any metric of boxes or masks. Requires pycocotools.
"""

import argparse
import contextlib
import copy
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import binary_erosion, shift

from common import describe
from maskkit.data import open_dataset
from maskkit.eval.instance.metric import KINDS, Kind, evaluate
from maskkit.geometry import polygons
from maskkit.geometry import rle as rle_codec


def disturbed(truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Result rows made from the ground truth by random errors."""
    rng = np.random.default_rng(seed)
    ids = [c["id"] for c in truth["categories"]]
    rows = []
    for annotation in truth["annotations"]:
        rle = annotation["segmentation"]
        mask = rle_codec.decode([{"size": rle["size"], "counts": rle["counts"].encode()}], tuple(rle["size"]))[0]
        for _ in range(rng.choice([0, 1, 2], p=[0.2, 0.6, 0.2])):
            found = shift(mask, rng.integers(-6, 7, 2), order=0)
            found = binary_erosion(found, iterations=int(rng.integers(1, 4))) if rng.random() < 0.5 else found
            label = annotation["category_id"] if rng.random() < 0.85 else int(rng.choice(ids))
            if found.any():
                rows.append(detection(annotation["image_id"], label, found, round(float(rng.random()), 2)))
    return [rows[i] for i in rng.permutation(len(rows))]


def detection(image_id: int, category_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    """A result row of a mask (H, W) and its box."""
    rle = rle_codec.encode(mask[None])[0]
    x1, y1, x2, y2 = rle_codec.boxes([rle])[0].tolist()
    row = {"image_id": image_id, "category_id": category_id, "segmentation": rle_codec.to_text(rle)}
    return {**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def official(rows: list[dict[str, Any]], truth: dict[str, Any], kind: Kind) -> COCOeval:
    """The evaluation of pycocotools, accumulated and summarised."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground: Any = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        coco_eval = COCOeval(ground, ground.loadRes(copy.deepcopy(rows)), kind)
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    return coco_eval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    truth = open_dataset(given.data).coco()
    for annotation in truth["annotations"]:  # polygons to run lengths, for the detector above
        size = next((i["height"], i["width"]) for i in truth["images"] if i["id"] == annotation["image_id"])
        rle = annotation["segmentation"]
        if isinstance(rle, list):
            rle = polygons.to_rle(rle, size)
        elif isinstance(rle["counts"], list):
            rle = rle_codec.from_counts(rle["counts"], size)
        counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
        annotation["segmentation"] = {"size": list(size), "counts": counts}
    worst = 0.0
    for seed in range(3):
        rows = disturbed(truth, seed)
        begin = time.perf_counter()
        result = evaluate(rows, truth)
        ours, begin = time.perf_counter() - begin, time.perf_counter()
        for kind in KINDS:
            numbers = result.bbox if kind == "bbox" else result.segm
            assert numbers is not None
            theirs_stats = official(rows, truth, kind).stats
            worst = max(worst, float(np.abs(np.array(list(numbers.values())) - theirs_stats).max()))
        theirs = time.perf_counter() - begin
        assert result.segm is not None
        print(
            f"seed {seed}: {len(rows)} rows, mask AP {result.segm['AP']:.4f}; {ours:.1f} s, pycocotools {theirs:.1f} s"
        )
    crowds = sum(a["iscrowd"] for a in truth["annotations"])
    print(f"{len(truth['images'])} images, {len(truth['annotations'])} objects, {crowds} crowds")
    print(f"largest difference of the 24 numbers: {worst:.3g}")
    print(describe())


if __name__ == "__main__":
    main()
