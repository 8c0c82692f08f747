"""The report of a panoptic evaluation: one HTML file that needs nothing beside it.

How good is it, on things and on stuff, on which classes does it fail, and what do the worst images look like.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.data.images import read_image
from maskkit.eval.instance.metric import percent
from maskkit.eval.page import embedded, table, write_page
from maskkit.eval.panoptic.metric import QUALITIES, Matches, Pair, PanopticResult, match, pairs
from maskkit.eval.rows import Unchecked
from maskkit.infer.draw import paint_segments

WORST = 12
"""Worst images shown."""
_SIDE = 320
"""Longer side of an image in the report, in pixels."""
_WRONG = np.array([214, 40, 40], np.uint8)


def write_report(
    path: Path, result: PanopticResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    """Write ``report.html`` for what `maskkit.eval.panoptic.metric.evaluate` found for ``rows`` and ``dataset``."""
    segments = int((result.hit + result.missed).sum())
    kinds = f"{sum(result.things)} of them things"
    facts = f"{len(dataset)} images, {segments:,} segments, {len(result.names)} classes, {kinds}"
    head = f"<h1>{escape(title)}</h1>" + "".join(f"<p class=note>{escape(line)}</p>" for line in (facts, *notes))
    write_page(path, title, [head, _summary(result), _classes(result), _worst(rows, dataset)])


def _summary(result: PanopticResult) -> str:
    main = result.main
    groups = (("all", ""), ("things", "_things"), ("stuff", "_stuff"))
    body = [[title, *(percent(main[name + end]) for name in QUALITIES)] for title, end in groups]
    return (
        "<h2>Quality</h2>"
        + table(["%", *QUALITIES], body)
        + "<p class=note>A found segment hits one of the same class when they share more than half of their union. SQ: "
        "mean IoU of the hits. RQ: hits, by hits and half of the false and the missed ones. PQ: their product; all are "
        "means over the classes.</p>"
    )


def _classes(result: PanopticResult) -> str:
    measured = {name: v for name, v in result.per_class.items() if v["PQ"] >= 0}
    ranked = sorted(measured.items(), key=lambda item: -item[1]["PQ"])
    body = [
        [name, "thing" if v["thing"] else "stuff", *(percent(v[q]) for q in QUALITIES)]
        + [str(v[count]) for count in ("hit", "false", "missed")]
        for name, v in ranked
    ]
    header = ["Class", "", *QUALITIES, "hit", "false", "missed"]
    return "<h2>Classes</h2>" + table(header, body, [v["PQ"] for _, v in ranked])


def _worst(rows: Unchecked, dataset: Dataset) -> str:
    rated = sorted((_quality(match(pair)), i) for i, pair in enumerate(pairs(rows, dataset)))[:WORST]
    chosen = dataset.subset(i for _, i in rated)
    ids = {r.image_id for r in chosen.records}
    figures = []
    for pair, (quality, _) in zip(pairs([r for r in rows if r["image_id"] in ids], chosen), rated, strict=True):
        found = match(pair)
        sides = "".join(embedded(side) for side in _sides(pair, found, len(dataset.categories)))
        counts = f"{len(found.hits)} hit, {len(found.false)} false, {len(found.missed)} missed"
        caption = f"{escape(pair.record.path.name)}: quality {percent(quality)} %, {counts}"
        figures.append(f"<figure><div class=three>{sides}</div><figcaption>{caption}</figcaption></figure>")
    return (
        "<h2>Worst images</h2><p class=note>By the quality of the image alone, all classes together. Left the "
        "ground truth, in the middle the prediction, right in red what is missed or false.</p>" + "".join(figures)
    )


def _quality(found: Matches) -> float:
    weight = len(found.hits) + (len(found.false) + len(found.missed)) / 2
    return float(found.iou.sum() / weight) if weight else 1.0


def _sides(pair: Pair, found: Matches, classes: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Truth, prediction and errors over the image, reduced."""
    image = Image.fromarray(read_image(pair.record.path).permute(1, 2, 0).numpy())  # (H, W, 3)
    factor = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    pixels = np.asarray(image.resize(size))
    truth, predicted = (_reduced(numbers, size) for numbers in (pair.truth, pair.found))
    wrong = np.isin(truth, found.missed + 1) | np.isin(predicted, found.false + 1)
    errors = pixels.copy()
    errors[wrong] = errors[wrong] // 4 + _WRONG // 4 * 3
    sides = [paint_segments(pixels, n, of, classes) for n, of in ((truth, pair.labels), (predicted, pair.found_labels))]
    return [*sides, errors]


def _reduced(numbers: Int[np.ndarray, "h w"], size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    return np.asarray(Image.fromarray(numbers.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
