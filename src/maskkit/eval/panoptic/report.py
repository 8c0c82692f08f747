"""The report of a panoptic evaluation: one self-contained HTML file.

It shows the quality for things and stuff, the classes on which the model fails, and the worst images.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from maskkit.data.dataset import Dataset
from maskkit.eval import page
from maskkit.eval.numbers import shown
from maskkit.eval.panoptic.metric import QUALITIES, Matches, Pair, PanopticResult, match, pairs
from maskkit.eval.rows import Unchecked
from maskkit.geometry.paint import paint_segments

_SIDE = 320
"""Longer side of an image in the report, in pixels."""


def write_report(
    path: Path, result: PanopticResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    """Write ``report.html`` for what `maskkit.eval.panoptic.metric.evaluate` found for ``rows`` and ``dataset``."""
    segments, things = int((result.hit + result.missed).sum()), sum(result.things)
    facts = f"{len(dataset)} images, {segments:,} segments, {len(result.names)} classes, {things} of them things"
    page.write_page(
        path,
        "panoptic.html",
        title=title,
        notes=[facts, *notes],
        summary=_summary(result),
        classes=_classes(result),
        worst=list(_worst(rows, dataset)),
    )


def _summary(result: PanopticResult) -> page.Table:
    main = result.main
    groups = (("all", ""), ("things", "_things"), ("stuff", "_stuff"))
    body = [[title, *(shown(main[name + end]) for name in QUALITIES)] for title, end in groups]
    return page.Table(["", *QUALITIES], body)


def _classes(result: PanopticResult) -> page.Table:
    measured = {name: v for name, v in result.per_class.items() if v["PQ"] is not None}
    ranked = sorted(measured.items(), key=lambda item: -item[1]["PQ"])
    body = [
        [name, "thing" if v["thing"] else "stuff", *(shown(v[q]) for q in QUALITIES)]
        + [str(v[count]) for count in ("hit", "false", "missed")]
        for name, v in ranked
    ]
    return page.Table(["Class", "", *QUALITIES, "hit", "false", "missed"], body, [v["PQ"] for _, v in ranked])


def _worst(rows: Unchecked, dataset: Dataset) -> Iterable[page.Shown]:
    rated = sorted((_quality(match(pair)), i) for i, pair in enumerate(pairs(rows, dataset)))[: page.WORST]
    chosen = dataset.subset(i for _, i in rated)
    ids, classes = {r.image_id for r in chosen.records}, len(dataset.categories)
    for pair, (quality, _) in zip(pairs([r for r in rows if r["image_id"] in ids], chosen), rated, strict=True):
        found = match(pair)
        counts = f"{len(found.hits)} hit, {len(found.false)} false, {len(found.missed)} missed"
        caption = f"{pair.record.path.name}: quality {shown(quality)}, {counts}"
        yield page.show(caption, lambda pair=pair, found=found: _drawn(pair, found, classes))


def _quality(found: Matches) -> float:
    weight = len(found.hits) + (len(found.false) + len(found.missed)) / 2
    return float(found.iou.sum() / weight) if weight else 1.0


def _drawn(pair: Pair, found: Matches, classes: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Ground truth, prediction and errors over the downsized image."""
    pixels, _ = page.reduced(pair.record.path, _SIDE)
    truth, predicted = (page.nearest(ids, (pixels.shape[0], pixels.shape[1])) for ids in (pair.truth, pair.found))
    wrong = np.isin(truth, found.missed + 1) | np.isin(predicted, found.false + 1)
    sides = ((truth, pair.labels), (predicted, pair.found_labels))
    return [*(paint_segments(pixels, ids, labels, classes) for ids, labels in sides), page.mark_errors(pixels, wrong)]
