"""The report of a semantic evaluation: one HTML file that needs nothing beside it.

How good is it, on which classes and at which contours does it fail, what is taken for what, and what do the worst
images look like.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.data.images import read_image
from maskkit.data.label_map import IGNORE
from maskkit.eval.instance.metric import percent
from maskkit.eval.page import drawing, embedded, heat, table, write_page
from maskkit.eval.rows import Unchecked
from maskkit.eval.semantic.metric import Pair, SemanticResult, pairs
from maskkit.infer.draw import class_colours, paint

WORST = 12
"""Worst images shown."""
_SIDE = 320
"""Longer side of an image in the report, in pixels."""
_CELLS = 60
"""Most classes in the confusion matrix; beyond, those with the most pixels."""
_WRONG = np.array([214, 40, 40], np.uint8)


def write_report(
    path: Path, result: SemanticResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    """Write ``report.html`` for what `maskkit.eval.semantic.metric.evaluate` found for ``rows`` and ``dataset``."""
    facts = f"{len(dataset)} images, {result.confusion.sum():,} pixels of known class, {len(result.names)} classes"
    head = f"<h1>{escape(title)}</h1>" + "".join(f"<p class=note>{escape(line)}</p>" for line in (facts, *notes))
    write_page(path, title, [head, _summary(result), _classes(result), _confusion(result), _worst(rows, dataset)])


def _summary(result: SemanticResult) -> str:
    names = {
        "mIoU": "mIoU",
        "boundary_mIoU": "Boundary mIoU",
        "accuracy": "Pixels",
        "class_accuracy": "Pixels, mean of classes",
    }
    main = result.main
    return (
        "<h2>Agreement</h2>"
        + table(["%", *names.values()], [["all", *(percent(main[n]) for n in names)]])
        + "<p class=note>IoU: pixels that truth and prediction share, by those that either has, mean over the classes. "
        "Boundary: the same within 2 % of the diagonal from a contour. Pixels: share of the pixels that are right.</p>"
    )


def _classes(result: SemanticResult) -> str:
    ranked = sorted(result.per_class.items(), key=lambda item: -item[1]["IoU"])
    total = max(result.confusion.sum(), 1)
    body = [
        [name, percent(v["pixels"] / total), *(percent(v[n]) for n in ("IoU", "boundary_IoU", "accuracy"))]
        for name, v in ranked
    ]
    header = ["Class", "% of the pixels", "IoU", "boundary IoU", "found"]
    return "<h2>Classes</h2>" + table(header, body, [v["IoU"] for _, v in ranked])


def _confusion(result: SemanticResult) -> str:
    counts = np.vstack([result.confusion, np.zeros(len(result.names) + 1, np.int64)])
    present = np.flatnonzero((counts.sum(0) + counts.sum(1))[:-1])
    shown = np.sort(present[np.argsort(-counts[present].sum(1), kind="stable")][:_CELLS])
    share = np.round(100 * counts / counts.sum(1, keepdims=True).clip(min=1)).astype(np.int64)
    off = counts.copy()
    np.fill_diagonal(off, 0)
    labels = [*result.names, "nothing"]
    top = np.argsort(-off, axis=None, kind="stable")[:10]
    mixed = [(*np.unravel_index(i, off.shape), int(off.flat[i])) for i in top if off.flat[i]]
    lines = "".join(f"<li>{escape(labels[a])} taken for {escape(labels[b])}: {n:,} pixels</li>" for a, b, n in mixed)
    return (
        "<h2>Confusion</h2><p class=note>Rows: classes; columns: what their pixels were taken for, in percent.</p>"
        + drawing(heat(share[np.ix_(shown, shown)], [labels[i] for i in shown]), "Confusion matrix")
        + (f"<p>Mixed up most often:</p><ol>{lines}</ol>" if lines else "")
    )


def _worst(rows: Unchecked, dataset: Dataset) -> str:
    rated = sorted(((_wrong(pair), i) for i, pair in enumerate(pairs(rows, dataset))), reverse=True)[:WORST]
    chosen = dataset.subset(i for _, i in rated)
    ids = {r.image_id for r in chosen.records}
    figures = []
    for pair, (wrong, _) in zip(pairs([r for r in rows if r["image_id"] in ids], chosen), rated, strict=True):
        sides = "".join(embedded(side) for side in _sides(pair, len(dataset.categories)))
        caption = f"{escape(pair.record.path.name)}: {percent(wrong)} % of the pixels are wrong"
        figures.append(f"<figure><div class=three>{sides}</div><figcaption>{caption}</figcaption></figure>")
    colours = class_colours(len(dataset.categories))
    keys = "".join(
        f'<span class=key style="background:rgb{tuple(c.tolist())}">{escape(name)}</span> '
        for c, name in zip(colours, dataset.categories.names, strict=True)
    )
    return (
        "<h2>Worst images</h2><p class=note>Most wrong pixels first. Left the ground truth, in the middle the "
        f"prediction, right in red what is wrong.</p><p>{keys}</p>" + "".join(figures)
    )


def _wrong(pair: Pair) -> float:
    known = pair.truth != IGNORE
    return float((pair.truth != pair.found)[known].mean()) if known.any() else 0.0


def _sides(pair: Pair, classes: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Truth, prediction and errors over the image, reduced."""
    image = Image.fromarray(read_image(pair.record.path).permute(1, 2, 0).numpy())  # (H, W, 3)
    factor = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    pixels = np.asarray(image.resize(size))
    truth, found = (
        np.asarray(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in (pair.truth, pair.found)
    )
    errors = pixels.copy()
    errors[truth != found] = errors[truth != found] // 4 + _WRONG // 4 * 3
    return [paint(pixels, truth, classes), paint(pixels, found, classes), errors]
