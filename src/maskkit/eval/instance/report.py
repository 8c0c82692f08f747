"""The report of an evaluation: one HTML file that needs nothing beside it.

It answers in this order: how good is it, from which score on should detections be believed, on which sizes and classes
does it fail, what is taken for what, and what do the worst images look like.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from maskkit.data.images import read_image
from maskkit.errors import DataError
from maskkit.eval.instance.match import (
    IGNORED,
    Scene,
    Tally,
    Threshold,
    best_threshold,
    confusion,
    match_classes,
    scenes,
    threshold_curve,
    worst,
)
from maskkit.eval.instance.metric import RECALLS, CocoResult, Kind, class_names, percent
from maskkit.eval.page import drawing, embedded, heat, table, write_page
from maskkit.eval.rows import Unchecked
from maskkit.geometry import rle as mask_math

WORST = 12
"""Worst images shown."""
_SIDE = 460
"""Longer side of an image in the report, in pixels."""
_TEXTS = 15
"""Most objects of an image that are all named; beyond, only those whose boxes are wide enough for it."""
_CELLS = 60
"""Most classes in the confusion matrix; beyond, those with the most objects."""

_GOOD, _BAD, _LOST, _CROWD = "#2e9e5b", "#d6453d", "#e08a00", "#7a7f87"
_LINES = ("#1668dc", "#d4380d", "#7a7f87")
_KIND_NAMES: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
_SIZES = {"s": "small", "m": "medium", "l": "large"}
_LIMITS = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, np.inf)}


def write_report(
    path: str | Path,
    result: CocoResult,
    rows: Unchecked,
    truth: Mapping[str, Any],
    image_path: Callable[[int], Path] | Mapping[int, Path],
    title: str = "Evaluation",
    notes: Iterable[str] = (),
) -> None:
    """Write ``report.html`` for the ``result`` that `maskkit.eval.instance.metric.evaluate` found for ``rows`` and
    ``truth``.

    ``image_path`` tells where the image of an image id lies; one that cannot be read is named in its place. Objects
    are matched by masks where those were measured, else by boxes. ``notes`` are lines of plain text under the title.
    """
    where = image_path.__getitem__ if isinstance(image_path, Mapping) else image_path
    names = list(class_names(truth).values())
    seen = list(scenes(rows, truth, result.kind))
    best = best_threshold(seen)
    counts = confusion(seen, len(names), best.score)
    sections = [
        _head(title, notes, truth, rows),
        _summary(result),
        _threshold(best, threshold_curve(seen), result.kind),
        _curves(result),
        _sizes(result, seen),
        _classes(result),
        _confusion(counts, names, best.score),
        _worst(worst(seen, best.score, WORST), names, best.score, where, truth),
    ]
    write_page(Path(path), title, sections)


def _head(title: str, notes: Iterable[str], truth: Mapping[str, Any], rows: Unchecked) -> str:
    crowds = sum(bool(a.get("iscrowd")) for a in truth["annotations"])
    facts = (
        f"{len(truth['images'])} images, {len(truth['annotations']) - crowds} objects and {crowds} crowds of "
        f"{len(truth['categories'])} classes, {len(rows)} detections"
    )
    return f"<h1>{escape(title)}</h1>" + "".join(f"<p class=note>{escape(line)}</p>" for line in (facts, *notes))


def _summary(result: CocoResult) -> str:
    measured = [(name, n) for name, n in (("Boxes", result.bbox), ("Masks", result.segm)) if n is not None]
    numbers = table(["COCO, %", *measured[0][1]], [[name, *map(percent, n.values())] for name, n in measured])
    return (
        "<h2>Average precision and recall</h2>"
        + numbers
        + "<p class=note>AP is the mean over IoU 0.50 to 0.95, AP50 and AP75 hold one IoU; s, m, l are objects under "
        "32&sup2;, under 96&sup2; and from 96&sup2; pixels; AR with a number allows that many detections per image. "
        "A dash: no such object.</p>"
    )


def _threshold(best: Threshold, curve: Sequence[Threshold], kind: Kind) -> str:
    heading = "<h2>Score threshold</h2>"
    if best.f1 == 0:
        return heading + "<p>No detection hits an object, so no threshold can be advised.</p>"
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="score threshold", ylim=(0, 1.02))
    for field, colour in zip(("f1", "precision", "recall"), _LINES, strict=True):
        axes.plot(
            [t.score for t in curve], [getattr(t, field) for t in curve], color=colour, label=field.replace("f1", "F1")
        )
    axes.axvline(best.score, color="black", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False)
    return (
        heading + f"<p>Detections with a score of <b>{best.score:.2f}</b> or more give the highest F1, "
        f"<b>{percent(best.f1)} %</b>: {percent(best.precision)} % of them are right, and {percent(best.recall)} % of "
        f"the objects are found ({_KIND_NAMES[kind]} IoU 0.5, right class). Confusion matrix and worst images "
        "below are taken at this threshold.</p>" + drawing(figure, "F1, precision and recall by score threshold")
    )


def _curves(result: CocoResult) -> str:
    figure = Figure(figsize=(5 * len(result.precision), 3.6), layout="constrained")
    for i, (kind, precision) in enumerate(result.precision.items(), 1):
        axes = figure.add_subplot(1, len(result.precision), i, xlabel="recall", ylabel="precision", ylim=(0, 1.02))
        measured = precision[:, :, precision[0, 0] > -1]  # (T, R, K) of classes with objects
        axes.set_title("Boxes" if kind == "bbox" else "Masks")
        if measured.size == 0:
            continue
        mean = measured.mean(2)
        for values, label, colour in zip(
            (mean[0], mean[5], mean.mean(0)), ("IoU 0.50", "IoU 0.75", "0.50 to 0.95"), _LINES, strict=True
        ):
            axes.plot(RECALLS, values, color=colour, label=f"{label}: {100 * values.mean():.1f}")
        axes.legend(frameon=False)
    return (
        "<h2>Precision and recall</h2>"
        + drawing(figure, "Precision by recall")
        + ("<p class=note>Mean over the classes; the number is the area under the curve in percent.</p>")
    )


def _sizes(result: CocoResult, seen: Sequence[Scene]) -> str:
    areas = np.array([o["area"] for scene in seen for o in scene.objects if not o["iscrowd"]])
    measured = [(name, n) for name, n in (("box", result.bbox), ("mask", result.segm)) if n is not None]
    header = ["Size", "Objects", *(f"{m} {name}" for name, _ in measured for m in ("AP", "AR"))]
    body = []
    for letter, (low, high) in _LIMITS.items():
        count = int(((areas >= low) & (areas < high)).sum())
        values = [percent(n[f"{m}{letter}"]) for _, n in measured for m in ("AP", "AR")]
        body.append([_SIZES[letter], str(count), *values])
    return "<h2>Sizes</h2>" + table(header, body)


def _classes(result: CocoResult) -> str:
    columns = [f"{kind}_{m}" for kind in result.precision for m in ("AP", "AP50")]
    header = ["Class", "Objects", *(f"{m} {_KIND_NAMES[kind]}" for kind in result.precision for m in ("AP", "AP50"))]
    ranked = sorted(result.per_class.items(), key=lambda item: -item[1][f"{result.kind}_AP"])
    body = [[name, str(v["objects"]), *(percent(v[c]) for c in columns)] for name, v in ranked]
    bars = [v[f"{result.kind}_AP"] for _, v in ranked]
    return "<h2>Classes</h2>" + table(header, body, bars)


def _confusion(counts: Int[np.ndarray, "k+1 k+1"], names: list[str], score: float) -> str:
    labels = [*names, "nothing"]
    present = np.flatnonzero((counts.sum(0) + counts.sum(1))[:-1])
    shown = np.sort(present[np.argsort(-counts[present].sum(1), kind="stable")][:_CELLS])
    note = f"The {len(shown)} classes with the most objects of {len(present)}. " if len(shown) < len(present) else ""
    cells = np.append(shown, len(names))
    off = counts.copy()
    off[:, -1] = off[-1] = 0
    np.fill_diagonal(off, 0)
    top = np.argsort(-off, axis=None, kind="stable")[:10]
    pairs = [(*np.unravel_index(i, off.shape), off.flat[i]) for i in top if off.flat[i]]
    mixed = "".join(f"<li>{escape(labels[a])} taken for {escape(labels[b])}: {n}</li>" for a, b, n in pairs)
    return (
        f"<h2>Confusion</h2><p class=note>Rows: objects; columns: what they were taken for at score {score:.2f}, "
        "matched at IoU 0.5 regardless of class. Last column: missed; last row: detections of nothing. Shade: share of "
        f"the row. {note}</p>"
        + drawing(heat(counts[np.ix_(cells, cells)], [labels[i] for i in cells]), "Confusion matrix")
        + (f"<p>Mixed up most often:</p><ol>{mixed}</ol>" if mixed else "")
    )


def _worst(
    pairs: Sequence[tuple[Scene, Tally]],
    names: list[str],
    score: float,
    where: Callable[[int], Path],
    truth: Mapping[str, Any],
) -> str:
    if not pairs:
        return "<h2>Worst images</h2><p>No image has a mistake.</p>"
    images = {image["id"]: image for image in truth["images"]}
    figures = []
    for scene, rating in pairs:
        name = str(images[scene.image_id].get("file_name", scene.image_id))
        caption = f"{escape(name)}: {rating.hits} right, {rating.missed} missed, {rating.false} false"
        try:
            sides = "".join(map(embedded, draw_scene(where(scene.image_id), scene, names, score)))
        except (DataError, KeyError) as error:
            sides = f"<p class=note>the image cannot be shown: {escape(str(error))}</p>"
        figures.append(f"<figure><div class=pair>{sides}</div><figcaption>{caption}</figcaption></figure>")
    legend = ((_GOOD, "found"), (_LOST, "missed"), (_BAD, "false"), (_CROWD, "crowd, not counted"))
    keys = " ".join(f'<span class=key style="background:{colour}">{text}</span>' for colour, text in legend)
    return (
        f"<h2>Worst images</h2><p class=note>Lowest F1 first, at score {score:.2f}. Left the ground truth, right the "
        f"detections. {keys}</p>" + "".join(figures)
    )


def draw_scene(
    path: Path, scene: Scene, names: list[str], score: float
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
    """Ground truth and detections over the image, reduced; colours tell found, missed, false and not counted.

    Raises `DataError` when the image cannot be read.
    """
    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())  # (H, W, 3)
    factor = min(1.0, _SIDE / max(image.size))
    image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    kept = scene.scores >= score
    answer = match_classes(scene)[kept]
    found = set(answer.tolist())
    truth_marks = [
        (record, names[label], _CROWD if record["iscrowd"] else _GOOD if i in found else _LOST)
        for i, (record, label) in enumerate(zip(scene.objects, scene.labels, strict=True))
    ]
    marks = [
        (scene.found[i], f"{names[scene.found_labels[i]]} {scene.scores[i]:.2f}", colour)
        for i, colour in zip(
            np.flatnonzero(kept),
            (_GOOD if a >= 0 else _CROWD if a == IGNORED else _BAD for a in answer),
            strict=True,
        )
    ]
    # the best and the least doubtful last, so that they lie on top
    return _overlay(image, truth_marks, factor), _overlay(image, marks[::-1], factor)


def _overlay(
    image: Image.Image, marks: Sequence[tuple[dict[str, Any], str, str]], factor: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with each mask tinted, each box outlined and its text; one mask is dense at a time."""
    canvas = image.copy()
    for record, _, colour in marks:
        if record["segmentation"] is not None:
            mask = Image.fromarray(_reduced(record["segmentation"], image.size)).point(lambda v: 115 if v else 0)
            canvas.paste(colour, (0, 0, *canvas.size), mask)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for record, text, colour in marks:
        x, y, width, height = (v * factor for v in record["bbox"])
        pen.rectangle((x, y, x + max(width, 1), y + max(height, 1)), outline=colour, width=2)
        if len(marks) > _TEXTS and pen.textlength(text, font) > width:
            continue
        left, top, right, bottom = pen.textbbox((max(x, 0) + 2, max(y - 13, 0)), text, font)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=colour)
        pen.text((max(x, 0) + 2, max(y - 13, 0)), text, "white", font)
    return np.asarray(canvas)


def _reduced(rle: mask_math.Rle, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A mask as 0 and 255 at another (width, height), nearest pixel."""
    dense: Bool[np.ndarray, "h w"] = mask_math.decode([rle], tuple(rle["size"]))[0]
    return np.asarray(Image.fromarray(dense).resize(size, Image.Resampling.NEAREST).convert("L"))
