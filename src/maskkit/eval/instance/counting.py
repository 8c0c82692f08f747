"""The counting of COCO's protocol: which detections match, and precision and recall of every class.

hotcoco gives the numbers of pycocotools, bit for bit. faster-coco-eval takes its place where hotcoco has no build for
the platform; its numbers differ in the last bit, since it leaves out an epsilon.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from maskkit.prediction import ImageId

Kind = Literal["bbox", "segm"]

Records = Sequence[Mapping[str, Any]]
"""Objects or detections, complete: ``image_id``, ``category_id``, ``bbox``, ``area``, ``iscrowd``, ``segmentation`` as
compressed run lengths, and of detections ``score``."""


class Counts(NamedTuple):
    """What COCO's protocol accumulates; -1 where there are no objects. Size ranges are all, small, medium, large."""

    precision: Float[np.ndarray, "10 101 k 4 m"]
    """By IoU, recall, class, size range and limit of detections."""
    recall: Float[np.ndarray, "10 k 4 m"]
    """The highest recall by IoU, class, size range and limit of detections."""


class Library(NamedTuple):
    """A library with the interface of pycocotools."""

    name: str
    dataset: Callable[[dict[str, Any]], Any]
    evaluation: Callable[[Any, Any, str], Any]


def hotcoco() -> Library:
    """Raises ``ImportError``."""
    import hotcoco

    return Library("hotcoco", hotcoco.COCO, hotcoco.COCOeval)


def faster_coco_eval() -> Library:
    """The fallback."""
    from faster_coco_eval import COCO, COCOeval_faster

    return Library("faster-coco-eval", COCO, COCOeval_faster)  # type: ignore[arg-type]


@functools.cache
def fastest() -> Library:
    """The fastest library that is installed."""
    try:
        return hotcoco()
    except ImportError:
        return faster_coco_eval()


class Pair(NamedTuple):
    """Ground truth and detections as a library holds them."""

    library: Library
    truth: Any
    found: Any


def pair(
    objects: Records,
    found: Records,
    images: Sequence[Mapping[str, Any]],
    classes: Sequence[int],
    masks: bool,
) -> Pair:
    """Objects and detections, with their masks if they are to be counted, for the fastest library. ``images`` are
    COCO's records of them, and ``classes`` the category ids."""
    library = fastest()
    # the libraries keep ids as doubles or unsigned numbers: those of a user may be negative or beyond 2^53
    numbers = {image["id"]: n for n, image in enumerate(images, 1)}, {c: n for n, c in enumerate(classes, 1)}
    about = {
        "images": [{"id": n, **{k: i[k] for k in ("height", "width") if k in i}} for n, i in enumerate(images, 1)],
        "categories": [{"id": n, "name": str(n)} for n in numbers[1].values()],
    }
    sides = (library.dataset({**about, "annotations": _annotations(r, *numbers, masks)}) for r in (objects, found))
    return Pair(library, *sides)


def count(pair: Pair, kind: Kind, limits: Sequence[int]) -> Counts:
    """Match detections with objects, with each of the ``limits`` per image."""
    evaluation = pair.library.evaluation(pair.truth, pair.found, kind)
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
    counted = evaluation.eval  # hotcoco makes it anew each time
    return Counts(counted["precision"], counted["recall"])


def _annotations(
    records: Records, images: Mapping[ImageId, int], classes: Mapping[int, int], masks: bool
) -> list[dict[str, Any]]:
    """The records as COCO's, with their masks on request."""
    annotations = []
    for number, record in enumerate(records, 1):
        row = {
            "id": number,
            "image_id": images[record["image_id"]],
            "category_id": classes[record["category_id"]],
            "area": record["area"],
            "iscrowd": record["iscrowd"],
            "bbox": record["bbox"],
        }
        if masks:
            row["segmentation"] = record["segmentation"]
        if "score" in record:
            row["score"] = record["score"]
        annotations.append(row)
    return annotations
