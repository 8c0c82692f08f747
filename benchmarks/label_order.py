"""Does it pay to correct the images that `maskkit prelabel --order uncertain` names first?

    python benchmarks/label_order.py --data DATA/nuclei_dsb2018 --steps 150 --seeds 0 1 --out label_order.json

A model is trained on a small random part of the training images. It orders the others; the first of them are
"corrected" (their true labels are taken) until ``--share`` of the training images have labels. As many random images
are the other side. A model is trained on each of the two sets, from the same start, for the same number of steps, and
evaluated on the validation images; with ``--everything`` a third one on all images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_timing import describe
from maskkit.api import Segmenter
from maskkit.data import open_splits
from maskkit.data.convert import write
from maskkit.data.dataset import Dataset
from maskkit.infer.prelabel import candidates
from maskkit.infer.teaching_order import LEAST, appearance, doubt, teaching_order


def trained(given: argparse.Namespace, train: Dataset, val: Dataset, steps: int, seed: int, folder: Path) -> Segmenter:
    """A model of the preset, trained on ``train`` for so many steps."""
    write({"train": train, "val": val.subset(range(8))}, folder / "data", "coco")  # only the last step is evaluated
    settings = {
        "steps": steps,
        "batch": given.batch,
        "warmup": steps // 3,
        "workers": 0,
        "seed": seed,
        "eval_every": 0,
    }
    out = folder / "run"
    return Segmenter.train(given.model, folder / "data", out=out, weights=given.weights, device="cpu", train=settings)


def ordered(segmenter: Segmenter, pool: Dataset) -> list[int]:
    """The images of the pool, those first that teach most."""
    found = segmenter.predictor.dataset(pool, score=LEAST * segmenter.score)
    doubts = [doubt([c.score for c in candidates(prediction)], segmenter.score) for prediction in found]
    return [place.index for place in teaching_order(doubts, [appearance(r.path) for r in pool.records])]


def objects(dataset: Dataset) -> int:
    return sum(len(r.annotations) for r in dataset.records)


def compared(given: argparse.Namespace, train: Dataset, val: Dataset, seed: int) -> list[dict[str, Any]]:
    """The rows of one seed."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train)).tolist()
    first, all_of = max(2, round(given.start * len(train))), round(given.share * len(train))
    start, rest = order[:first], order[first:]
    sets: dict[str, Sequence[int]] = {"random": order[:all_of]}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = trained(given, train.subset(start), val, given.first_steps, seed, Path(scratch) / "start")
        ranked = ordered(model, train.subset(rest))
        sets["uncertain"] = [*start, *(rest[i] for i in ranked[: all_of - first])]
        if given.everything:
            sets["all images"] = order
        for name, indices in sets.items():
            begin = time.perf_counter()
            part = train.subset(indices)
            result = trained(given, part, val, given.steps, seed, Path(scratch) / name).evaluate(val).main
            facts = {"order": name, "seed": seed, "images": len(part), "objects": objects(part)}
            facts |= {"AP": result["AP"], "AP50": result["AP50"], "seconds": round(time.perf_counter() - begin)}
            print(json.dumps(facts), flush=True)
            rows.append(facts)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nanoinst-416", help="a small preset")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--start", type=float, default=0.05, help="share of the images that have labels at first")
    parser.add_argument("--share", type=float, default=0.2, help="share of the images that have labels in the end")
    parser.add_argument("--first-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--everything", action="store_true", help="train on all images too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train, val = open_splits(given.data)
    rows = [row for seed in given.seeds for row in compared(given, train, val, seed)]
    facts = {"machine": describe(given.threads), "data": given.data.name, "model": given.model, "steps": given.steps}
    if given.out:
        given.out.write_text(json.dumps(facts | {"rows": rows}, indent=1), encoding="utf-8")
    print(facts["machine"])


if __name__ == "__main__":
    main()
