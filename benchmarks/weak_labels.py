"""How good are the masks that `maskkit prelabel --from boxes` and `--from tags` make?

    python benchmarks/weak_labels.py --data DATA/nuclei_dsb2018 --known boxes --steps 150 --out weak.json
    python benchmarks/weak_labels.py --data DATA/animals --known tags --saliency built-in --steps 150

The masks of the training images are hidden. With ``--known boxes`` a model is trained on the boxes alone and fills each
of them; the figures are the IoU of each mask with the true one (0 where no mask is found), beside that of the box
taken as a mask. With ``--known tags`` EPS is trained on the classes of each image and the saliency maps of a model; the
figures are the IoU of the pixels of each class in each image, beside that of the saliency map taken for the class.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common_timing import describe
from maskkit.api import Segmenter
from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.find import find_weights
from maskkit.cli.prelabel import filled
from maskkit.config import PseudoMasks
from maskkit.data import open_dataset
from maskkit.data.convert import write
from maskkit.data.dataset import Dataset
from maskkit.data.records import Annotation, box_of
from maskkit.engine.pseudo import train_on_tags
from maskkit.geometry import rle as mask_math
from maskkit.geometry.polygons import to_rle
from maskkit.infer.pseudo_labels import pseudo_masks
from maskkit.infer.saliency import write_saliency


def rectangle(annotation: Annotation, size: tuple[int, int]) -> mask_math.Rle:
    """The box of an object as a mask."""
    x1, y1, x2, y2 = box_of(annotation, size)
    return to_rle([[x1, y1, x2, y1, x2, y2, x1, y2]], size)


def quality(ious: list[float]) -> dict[str, float]:
    """Mean IoU, and the share of good ones."""
    values = np.array(ious)
    return {"mean IoU": values.mean(), "above 0.5": (values > 0.5).mean(), "above 0.75": (values > 0.75).mean()}


def of_boxes(given: argparse.Namespace, data: Dataset, scratch: Path) -> dict[str, Any]:
    """Masks for the boxes of ``data``."""
    hidden = [
        replace(
            r, annotations=[replace(a, segmentation=None, box=box_of(a, r.size)) for a in r.annotations], truth=None
        )
        for r in data.records
    ]
    boxes = replace(data, records=hidden)
    write({"train": boxes, "val": data.subset(range(2))}, scratch / "data", "coco")
    settings = {
        "steps": given.steps,
        "batch": given.batch,
        "warmup": given.steps // 10,
        "workers": 0,
        "seed": given.seed,
        "eval_every": 0,
    }
    segmenter = Segmenter.train(
        *(given.model or "condinst-mobilenetv2-320", scratch / "data"),
        out=scratch / "run",
        weights=given.weights,
        device="cpu",
        train=settings,
        data={"labels": "boxes"},
    )
    found, plain, count = [], [], 0
    for true, made in zip(data.records, filled(segmenter, boxes, 0.95), strict=True):
        for a, b in zip(true.annotations, made.annotations, strict=True):
            mask, truth = b.rle(true.size), a.rle(true.size)
            count += mask is not None
            found.append(float(mask_math.iou([mask], [truth])[0, 0]) if mask is not None and truth else 0.0)
            plain.append(float(mask_math.iou([rectangle(b, true.size)], [truth])[0, 0]) if truth else 0.0)
    return {"objects": len(found), "filled": count, "masks": quality(found), "boxes as masks": quality(plain)}


def of_tags(given: argparse.Namespace, data: Dataset, scratch: Path) -> dict[str, Any]:
    """The pixels of the classes of each image of ``data``."""
    folder = scratch / "data"
    write({"train": data, "val": data.subset(range(2))}, folder, "coco")
    finder = load_model(find_weights(given.saliency))
    copied = open_dataset(folder, "train")
    maps = scratch / "saliency"
    images = [r.path for r in copied.records]
    images += [r.path for r in open_dataset(folder, "val").records]
    write_saliency(finder.model, finder.config.input, finder.categories, images, maps)
    best = train_on_tags(
        given.model or "eps-mobilenetv2-320", folder, maps, scratch / "out", given.weights, given.steps, "cpu"
    )
    eps = load_model(best)
    known = copied.as_semantic().with_categories(eps.categories)
    ious, salient = [], []
    for record, path, prediction in zip(
        known.records, images, pseudo_masks(eps.model, known, eps.config.input, PseudoMasks()), strict=False
    ):
        assert record.semantic is not None
        assert prediction.semantic is not None
        truth = record.semantic.read(record.size)
        grey = np.asarray(Image.open(maps / path.parent.name / f"{path.stem}.png")) > 127
        for label in sorted(set(np.unique(truth).tolist()) - {0, 255}):
            for pixels, into in ((prediction.semantic == label, ious), (grey, salient)):
                true = truth == label
                into.append(float((pixels & true).sum() / max((pixels | true).sum(), 1)))
    return {"regions": len(ious), "masks": quality(ious), "saliency as masks": quality(salient)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--known", choices=["boxes", "tags"], required=True)
    parser.add_argument("--model", help="a small preset; CondInst for boxes, EPS for tags")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--saliency", default="built-in", help="checkpoint of a model that finds objects")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    begin = time.perf_counter()
    data = open_dataset(given.data, "train")
    with tempfile.TemporaryDirectory() as scratch:
        made = (of_boxes if given.known == "boxes" else of_tags)(given, data, Path(scratch))
    facts = {"machine": describe(given.threads), "data": given.data.name, "known": given.known, "steps": given.steps}
    facts |= made | {"seconds": round(time.perf_counter() - begin)}
    print(json.dumps(facts, indent=1))
    if given.out:
        given.out.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
