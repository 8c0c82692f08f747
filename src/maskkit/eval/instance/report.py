"""The report of an instance evaluation: one self-contained HTML file.

It shows, in this order: the metrics, the best score threshold, the sizes and classes on which the model fails, the
confused classes, and the worst images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import ImageColor

from maskkit.eval import page
from maskkit.eval.instance.match import (
    IGNORED,
    Scene,
    Tally,
    best_threshold,
    confusion,
    match_classes,
    scenes,
    threshold_curve,
    worst,
)
from maskkit.eval.instance.metric import RECALLS, CocoResult, Kind, class_names
from maskkit.eval.numbers import Threshold, rank, shown
from maskkit.eval.rows import Unchecked
from maskkit.geometry import rle as mask_math
from maskkit.geometry.paint import Region
from maskkit.infer.draw import draw_objects, text_width

_SIDE = 460
"""Longer side of an image in the report, in pixels."""
_TEXTS = 15
"""Up to this many objects of an image all are labelled; with more, only those with wide enough boxes."""

_GOOD, _BAD, _LOST, _CROWD = "#2e9e5b", "#d6453d", "#e08a00", "#7a7f87"
_LEGEND = (("found", _GOOD), ("missed", _LOST), ("false", _BAD), ("crowd, not counted", _CROWD))
_LINES = ("#1668dc", "#d4380d", "#7a7f87")
_KIND_NAMES: dict[Kind, str] = {"bbox": "box", "segm": "mask"}
_SIZES = {"s": ("small", 0, 32**2), "m": ("medium", 32**2, 96**2), "l": ("large", 96**2, np.inf)}


def write_report(
    path: str | Path,
    result: CocoResult,
    rows: Unchecked,
    truth: Mapping[str, Any],
    image_path: Callable[[Any], Path] | Mapping[Any, Path],
    title: str = "Evaluation",
    notes: Iterable[str] = (),
) -> None:
    """Write ``report.html`` for the ``result`` of `maskkit.eval.instance.metric.evaluate` on ``rows`` and ``truth``.

    ``image_path`` maps an image id to its file; for one that cannot be read the report says so. Objects are matched by
    masks where those were evaluated, else by boxes. ``notes`` are lines of plain text under the title.
    """
    where = image_path.__getitem__ if isinstance(image_path, Mapping) else image_path
    names = list(class_names(truth).values())
    seen = list(scenes(rows, truth, result.kind))
    best = best_threshold(seen)
    counts = confusion(seen, len(names), best.score)
    page.write_page(
        Path(path),
        "instance.html",
        title=title,
        notes=[_facts(truth, rows), *notes],
        summary=_summary(result),
        best=best,
        score=f"{best.score:.2f}",
        kind=_KIND_NAMES[result.kind],
        threshold_drawing=_threshold(best, threshold_curve(seen)),
        curves_drawing=_curves(result),
        sizes=_sizes(result, seen),
        classes=_classes(result),
        confusion=page.confusions(counts, counts, names, nothing=True),
        legend=_LEGEND,
        worst=list(_worst(worst(seen, best.score, page.WORST), names, best.score, where, truth)),
    )


def _facts(truth: Mapping[str, Any], rows: Unchecked) -> str:
    crowds = sum(bool(a.get("iscrowd")) for a in truth["annotations"])
    return (
        f"{len(truth['images'])} images, {len(truth['annotations']) - crowds} objects and {crowds} crowds of "
        f"{len(truth['categories'])} classes, {len(rows)} detections"
    )


def _summary(result: CocoResult) -> page.Table:
    measured = [(name, n) for name, n in (("Boxes", result.bbox), ("Masks", result.segm)) if n is not None]
    return page.Table(["COCO", *measured[0][1]], [[name, *map(shown, n.values())] for name, n in measured])


def _threshold(best: Threshold, curve: Sequence[Threshold]) -> str:
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="score threshold", ylim=(0, 1.02))
    for field, colour in zip(("f1", "precision", "recall"), _LINES, strict=True):
        axes.plot(
            [t.score for t in curve], [getattr(t, field) for t in curve], color=colour, label=field.replace("f1", "F1")
        )
    axes.axvline(best.score, color="black", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False)
    return page.svg(figure)


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
            axes.plot(RECALLS, values, color=colour, label=f"{label}: {values.mean():.3f}")
        axes.legend(frameon=False)
    return page.svg(figure)


def _sizes(result: CocoResult, seen: Sequence[Scene]) -> page.Table:
    areas = np.array([o["area"] for scene in seen for o in scene.objects if not o["iscrowd"]])
    measured = [(name, n) for name, n in (("box", result.bbox), ("mask", result.segm)) if n is not None]
    header = ["Size", "Objects", *(f"{m} {name}" for name, _ in measured for m in ("AP", "AR"))]
    body = []
    for letter, (name, low, high) in _SIZES.items():
        count = int(((areas >= low) & (areas < high)).sum())
        body.append([name, str(count), *(shown(n[f"{m}{letter}"]) for _, n in measured for m in ("AP", "AR"))])
    return page.Table(header, body)


def _classes(result: CocoResult) -> page.Table:
    columns = [f"{kind}_{m}" for kind in result.precision for m in ("AP", "AP50")]
    header = ["Class", "Objects", *(f"{m} {_KIND_NAMES[kind]}" for kind in result.precision for m in ("AP", "AP50"))]
    ranked = sorted(result.per_class.items(), key=lambda item: -rank(item[1][f"{result.kind}_AP"]))
    body = [[name, str(v["objects"]), *(shown(v[c]) for c in columns)] for name, v in ranked]
    return page.Table(header, body, [rank(v[f"{result.kind}_AP"]) for _, v in ranked])


def _worst(
    pairs: Sequence[tuple[Scene, Tally]],
    names: list[str],
    score: float,
    where: Callable[[Any], Path],
    truth: Mapping[str, Any],
) -> Iterator[page.Shown]:
    images = {image["id"]: image for image in truth["images"]}
    for scene, rating in pairs:
        name = str(images[scene.image_id].get("file_name", scene.image_id))
        caption = f"{name}: {rating.hits} right, {rating.missed} missed, {rating.false} false"
        yield page.show(caption, lambda scene=scene: draw_scene(where(scene.image_id), scene, names, score))


def draw_scene(
    path: Path, scene: Scene, names: list[str], score: float
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]:
    """Ground truth and detections over the downsized image, coloured as found, missed, false or not counted.

    Raises `DataError` when the image cannot be read.
    """
    image, factor = page.reduced(path, _SIDE)
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
    # the best last, so that they are drawn on top
    return _overlay(image, truth_marks, factor), _overlay(image, marks[::-1], factor)


def _overlay(
    image: UInt8[np.ndarray, "h w 3"], marks: Sequence[tuple[dict[str, Any], str, str]], factor: float
) -> UInt8[np.ndarray, "h w 3"]:
    """The downsized image with mask, box and text of each record. Only one mask is dense at a time."""
    boxes = factor * np.array([record["bbox"] for record, *_ in marks], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # x y w h to x1 y1 x2 y2
    roomy = [
        len(marks) <= _TEXTS or text_width(text) <= x2 - x1
        for (_, text, _), (x1, _, x2, _) in zip(marks, boxes, strict=True)
    ]
    colours = np.array([ImageColor.getrgb(colour) for *_, colour in marks], np.uint8).reshape(-1, 3)
    masks = (_reduced(record["segmentation"], (image.shape[0], image.shape[1])) for record, *_ in marks)
    texts = [text if room else "" for (_, text, _), room in zip(marks, roomy, strict=True)]
    return draw_objects(image, masks, boxes, colours, texts, line=2)


def _reduced(rle: mask_math.Rle | None, size: tuple[int, int]) -> Region:
    """A mask at another (height, width), empty where it is unknown."""
    dense = page.nearest(mask_math.decode([rle], tuple(rle["size"]))[0], size) if rle else np.zeros((0, 0), bool)
    return dense, 0, 0
