"""The report of a semantic evaluation: one self-contained HTML file.

It shows the metrics, the classes and contours on which the model fails, the confused classes, and the worst images.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.eval import page
from maskkit.eval.numbers import rank, shown
from maskkit.eval.rows import Unchecked
from maskkit.eval.semantic.metric import Pair, SemanticResult, pairs
from maskkit.geometry.paint import class_colours, paint_classes

_SIDE = 320
"""Longer side of an image in the report, in pixels."""


def write_report(
    path: Path, result: SemanticResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    """Write ``report.html`` for what `maskkit.eval.semantic.metric.evaluate` found for ``rows`` and ``dataset``."""
    facts = f"{len(dataset)} images, {result.confusion.sum():,} pixels of known class, {len(result.names)} classes"
    counts = np.vstack([result.confusion, np.zeros(len(result.names) + 1, np.int64)])
    share = np.round(100 * counts / counts.sum(1, keepdims=True).clip(min=1)).astype(np.int64)
    colours = [f"rgb{tuple(colour.tolist())}" for colour in class_colours(len(dataset.categories))]
    page.write_page(
        path,
        "semantic.html",
        title=title,
        notes=[facts, *notes],
        summary=_summary(result),
        classes=_classes(result),
        confusion=page.confusions(counts, share, result.names, nothing=False),
        legend=list(zip(dataset.categories.names, colours, strict=True)),
        worst=list(_worst(rows, dataset)),
    )


def _summary(result: SemanticResult) -> page.Table:
    names = {
        "mIoU": "mIoU",
        "boundary_mIoU": "Boundary mIoU",
        "accuracy": "Pixels",
        "class_accuracy": "Pixels, mean of classes",
    }
    return page.Table(["", *names.values()], [["all", *(shown(result.main[n]) for n in names)]])


def _classes(result: SemanticResult) -> page.Table:
    ranked = sorted(result.per_class.items(), key=lambda item: -rank(item[1]["IoU"]))
    total = max(result.confusion.sum(), 1)
    body = [
        [name, shown((v["pixels"] or 0) / total), *(shown(v[n]) for n in ("IoU", "boundary_IoU", "accuracy"))]
        for name, v in ranked
    ]
    header = ["Class", "share of the pixels", "IoU", "boundary IoU", "found"]
    return page.Table(header, body, [rank(v["IoU"]) for _, v in ranked])


def _worst(rows: Unchecked, dataset: Dataset) -> Iterable[page.Shown]:
    rated = sorted(((_wrong(pair), i) for i, pair in enumerate(pairs(rows, dataset))), reverse=True)[: page.WORST]
    chosen = dataset.subset(i for _, i in rated)
    ids, classes = {r.image_id for r in chosen.records}, len(dataset.categories)
    for pair, (wrong, _) in zip(pairs([r for r in rows if r["image_id"] in ids], chosen), rated, strict=True):
        caption = f"{pair.record.path.name}: {shown(wrong)} of the pixels are wrong"
        yield page.show(caption, lambda pair=pair: _drawn(pair, classes))


def _wrong(pair: Pair) -> float:
    known = pair.truth != IGNORE
    return float((pair.truth != pair.found)[known].mean()) if known.any() else 0.0


def _drawn(pair: Pair, classes: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Ground truth, prediction and errors over the downsized image."""
    pixels, _ = page.reduced(pair.record.path, _SIDE)
    truth, found = (page.nearest(labels, (pixels.shape[0], pixels.shape[1])) for labels in (pair.truth, pair.found))
    sides = [paint_classes(pixels, labels, classes) for labels in (truth, found)]
    return [*sides, page.mark_errors(pixels, truth != found)]
