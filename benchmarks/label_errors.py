"""How many errors of labels does `maskkit check --model` find among the first tenth of what it lists?

    python benchmarks/label_errors.py --data DATA/building_facades --steps 200 --out label_errors.json
    python benchmarks/label_errors.py --data DATA/coco_instances --model built-in

Errors are planted into a copy of the data set, in each split, each kind in ``--share`` of the objects: an object loses
its label, a label gets another class (any, with equal probability), a mask becomes loose (shifted by 0.3 of its width
or height, or scaled about its centre to 0.6 or 1.7 of its area). A small model is trained on the training split
(or one is taken as it is). Then the labels of the validation split, on which it was not trained, are compared with
what it finds. The list is counted as far as a tenth of the number of objects; by chance a tenth of the errors would be
there.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_timing import describe
from maskkit.api import Segmenter, load
from maskkit.data import open_dataset
from maskkit.data.convert import write
from maskkit.data.convert.outlines import polygons_of
from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, box_of, extent
from maskkit.eval.instance.label_errors import ERROR_KINDS, Suspect, in_turns, suspects
from maskkit.geometry.rle import box_iou


@dataclass
class Planted:
    """Errors that were planted into a data set."""

    gone: dict[Any, list[list[float]]] = field(default_factory=dict)
    """Boxes ``x y w h`` of the objects without a label, by the id of the image."""
    changed: dict[tuple[Any, int], str] = field(default_factory=dict)
    """The kind of error of a label, by the ids of its image and itself."""

    def kind(self, suspect: Suspect) -> str | None:
        """The planted error that a suspect is, whatever kind it is taken for."""
        if suspect.annotation is not None:
            return self.changed.get((suspect.image_id, suspect.annotation))
        boxes = self.gone.get(suspect.image_id, [])
        return "missed object" if boxes and box_iou([suspect.box], boxes).max() >= 0.5 else None

    def counts(self) -> Mapping[str, int]:
        """Errors of each kind."""
        return Counter(self.changed.values()) + Counter({"missed object": sum(map(len, self.gone.values()))})


def plant(dataset: Dataset, share: float, rng: np.random.Generator) -> tuple[Dataset, Planted]:
    """The data set with errors of each kind in ``share`` of its objects."""
    planted, records = Planted(), []
    classes = len(dataset.categories)
    for record in dataset.records:
        kept = []
        for annotation in record.annotations:
            drawn = int(rng.random() / share) if not annotation.crowd else 3
            if drawn == 0:
                x1, y1, x2, y2 = box_of(annotation, record.size)
                planted.gone.setdefault(record.image_id, []).append([x1, y1, x2 - x1, y2 - y1])
                continue
            if drawn == 1 and classes > 1:
                other = (annotation.label + 1 + int(rng.integers(classes - 1))) % classes
                annotation = replace(annotation, label=other)
                planted.changed[record.image_id, annotation.id] = "wrong class"
            elif drawn == 2 and annotation.segmentation is not None:
                annotation = loosened(annotation, record.size, rng)
                planted.changed[record.image_id, annotation.id] = "loose mask"
            kept.append(annotation)
        records.append(replace(record, annotations=kept, truth=None))
    return replace(dataset, records=records), planted


def loosened(annotation: Annotation, size: tuple[int, int], rng: np.random.Generator) -> Annotation:
    """The object with another outline: shifted, shrunk or grown."""
    parts = [part.reshape(-1, 2) for part in polygons_of(annotation, size)]
    corners = np.concatenate(parts)
    low, high = corners.min(0), corners.max(0)
    kind = int(rng.integers(4))
    if kind < 2:
        shift = np.zeros(2)
        shift[kind] = 0.3 * (high - low)[kind] * rng.choice([-1, 1])
        moved = [part + shift for part in parts]
    else:
        scale = (0.6 if kind == 2 else 1.7) ** 0.5
        centre = (low + high) / 2
        moved = [(part - centre) * scale + centre for part in parts]
    moved = [np.clip(part, 0, size[::-1]).reshape(-1) for part in moved]
    return replace(annotation, segmentation=moved, box=extent(moved), area=None, stated=None)


def counted(found: list[Suspect], planted: Planted, objects: int) -> dict[str, Any]:
    """How many errors of each kind are among the first tenth, and how many of that are errors at all."""
    first = in_turns(found, lambda s: s)[: round(0.1 * objects)]
    hits = [planted.kind(s) for s in first]
    each = {}
    for kind, number in planted.counts().items():
        own = sorted((s for s in found if s.kind == kind), key=lambda s: -s.suspicion)[:number]
        each[kind] = {
            "planted": number,
            "found": sum(hit == kind for hit in hits),
            "found and named so": sum(hit == kind == s.kind for hit, s in zip(hits, first, strict=True)),
            "among as many of its own list": sum(planted.kind(s) == kind for s in own),
        }
    return {"objects": objects, "looked at": len(first), "errors in them": sum(h is not None for h in hits)} | each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a data set with train and val")
    parser.add_argument("--model", default="nanoinst-416", help="a small preset to train, a checkpoint, or built-in")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file; the model is written beside it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        parts = {split: plant(open_dataset(given.data, split), given.share, rng) for split in ("train", "val")}
        copy = Path(scratch) / "planted"
        write({split: dataset for split, (dataset, _) in parts.items()}, copy, "coco")
        begin = time.perf_counter()
        if given.model == "built-in" or Path(given.model).is_file():
            segmenter = load(given.model, "cpu")
        else:
            settings = {"steps": given.steps, "batch": given.batch, "warmup": given.steps // 10}
            settings |= {"workers": 0, "seed": given.seed, "eval_every": 0}
            out = Path(scratch) / "run"
            segmenter = Segmenter.train(given.model, copy, out=out, weights=given.weights, device="cpu", train=settings)
            if given.out:
                given.out.with_suffix(".safetensors").write_bytes((out / "best.safetensors").read_bytes())
        trained = time.perf_counter() - begin
        facts: dict[str, Any] = {"machine": describe(given.threads), "model": given.model, "seed": given.seed}
        facts |= {"seconds of training": round(trained), "steps": segmenter.info.get("step")}
        written = open_dataset(copy, "val")
        rows, known = segmenter.detect(written)
        metrics = segmenter.task.evaluate(rows, segmenter.task.view(open_dataset(given.data, "val"))).main
        facts["AP on labels without errors"] = metrics["AP"]
        objects = sum(len(r.annotations) for r in known.records)
        facts |= counted(suspects(rows, known.truth()), parts["val"][1], objects)
    print(json.dumps(facts, indent=1))
    for kind in ERROR_KINDS:
        if kind in facts:
            print(f"{kind}: {facts[kind]['found']} of {facts[kind]['planted']} found in the first tenth")
    if given.out:
        given.out.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
