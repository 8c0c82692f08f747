"""How good the masks are that a model draws in given boxes: their IoU with the masks of the data set.

    python benchmarks/drawn_masks.py --data DATA/coco_instances --split val

Prints, as JSON, the mean IoU of all objects with a known mask, of those that a training with ``--data.teacher`` would
use, and of the filled boxes, in total and by class. ``--grid`` adds other thresholds of the certainty and of the fit.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common_timing import describe
from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.find import find_weights
from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.records import box_of
from maskkit.engine.drawn_masks import FITS, SURE
from maskkit.geometry import rle as mask_math
from maskkit.infer.in_boxes import masks_in_boxes
from maskkit.infer.torch_runtime import TorchRuntime


class Judged(NamedTuple):
    """One object: its class, and how its drawn mask compares with the true one."""

    name: str
    iou: float
    box_iou: float
    """IoU of the filled box with the true mask."""
    certainty: float
    fit: float


def judge(source: str, dataset: Dataset) -> list[Judged]:
    """All objects with a known mask."""
    teacher = load_model(find_weights(source))
    runtime = TorchRuntime(teacher.model, "cpu", fold=True)
    found = []
    for index, record in enumerate(dataset.records):
        for a, drawn in zip(
            record.annotations, masks_in_boxes(runtime, teacher.config.input, dataset, index), strict=True
        ):
            true = a.rle(record.size)
            if drawn is None or true is None:
                continue
            x1, y1, x2, y2 = (round(v) for v in box_of(a, record.size))
            filled = mask_math.encode_region(np.ones((max(y2 - y1, 1), max(x2 - x1, 1)), bool), y1, x1, record.size)
            ours, box = mask_math.iou([drawn.mask, filled], [true])[:, 0].tolist()
            found.append(Judged(dataset.categories.names[a.label], ours, box, drawn.certainty, drawn.fit))
    return found


def summary(objects: Sequence[Judged], sure: float = SURE, fits: float = FITS) -> dict[str, float]:
    """Means of some objects."""
    used = [o.certainty >= sure and o.fit >= fits for o in objects]
    iou, box = np.array([[o.iou, o.box_iou] for o in objects]).T
    kept = iou[used]
    return {
        "objects": len(objects),
        "iou": round(float(iou.mean()), 3),
        "box": round(float(box.mean()), 3),
        "used": round(float(np.mean(used)), 3),
        "iou_of_used": round(float(kept.mean()), 3) if len(kept) else 0.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--allow-outside", action="store_true", help="images may lie outside of the data's folder")
    parser.add_argument("--teacher", default="built-in")
    parser.add_argument("--grid", action="store_true", help="other thresholds too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file of all objects")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dataset = open_dataset(given.data, given.split, given.allow_outside)
    begin = time.process_time()
    objects = judge(given.teacher, dataset)
    facts = {"data": given.data, "split": given.split, "images": len(dataset)} | summary(objects)
    print(describe(given.threads))
    print(json.dumps(facts | {"cpu_seconds": round(time.process_time() - begin)}))
    classes = defaultdict(list)
    for o in objects:
        classes[o.name].append(o)
    for name, members in sorted(classes.items(), key=lambda item: -len(item[1]))[:12]:
        print(json.dumps({"class": name} | summary(members)))
    if given.grid:
        for sure in (0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
            for fits in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9):
                print(json.dumps({"sure": sure, "fits": fits} | summary(objects, sure, fits)))
    if given.out:
        given.out.write_text(json.dumps(objects))


if __name__ == "__main__":
    main()
