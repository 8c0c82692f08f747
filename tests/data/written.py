"""Small data sets on disk for the tests of readers, doctor and converter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from maskkit.data.records import Annotation, Segment
from maskkit.data.rules import Problem
from maskkit.geometry import rle as mask_math
from maskkit.prediction import Categories

SIZE = (40, 60)  # height, width of every image here
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
BLOCK = [5.0, 5.0, 15.0, 5.0, 15.0, 20.0, 5.0, 20.0]


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """An image of noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([-1, 0, 1, 10**30, 7.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
"""Any value that a json file may hold."""


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside of json content."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path] * bool(path) + [p for key, value in inner for p in places(value, (*path, key))]


def spoil(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of json content with another value at one place."""
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def image_row(number: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]} | changes


def object_row(number: Any, image: Any = 1, **changes: Any) -> dict[str, Any]:
    row = {"id": number, "image_id": image, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400.0, "iscrowd": 0}
    return row | {"segmentation": [SQUARE]} | changes


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_coco(
    file: Path, annotations: list[Any], images: list[Any] | None = None, categories: list[Any] | None = None
) -> Path:
    """A COCO file with classes of the ids 3 and 7; images 1 and 2 lie in ``images/`` beside it."""
    for number in (1, 2):
        write_image(file.parent / "images" / f"{number}.png", number)
    images = [image_row(1), image_row(2)] if images is None else images
    categories = categories or [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    return write_json(file, {"images": images, "annotations": annotations, "categories": categories})


PANOPTIC_CLASSES = (("cat", 3, True), ("sky", 187, False), ("grass", 193, False))
"""Name, id, whether a thing."""


def panoptic_categories() -> Categories:
    return Categories(*zip(*PANOPTIC_CLASSES, strict=True))  # type: ignore[arg-type]


def write_panoptic(file: Path, images: dict[int, tuple[np.ndarray, list[dict[str, Any]]]]) -> Path:
    """A COCO panoptic file: ids per pixel and segments by the id of the image, which lies in ``images/``.

    What a segment does not say of itself is filled in.
    """
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": panoptic_categories().to_coco()}
    for number, (ids, segments) in images.items():
        write_image(file.parent / "images" / f"{number}.png", number, ids.shape)  # type: ignore[arg-type]
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        (file.parent / file.stem).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(file.parent / file.stem / f"{number}.png")
        rows = [{"iscrowd": 0, "area": int((ids == s["id"]).sum())} | s for s in segments]
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        content["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": rows})
    return write_json(file, content)


def pixels(annotation: Annotation, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The mask (H, W) of an object."""
    rle = annotation.rle(size)
    assert rle is not None
    return mask_math.decode([rle], size)[0]


def areas(annotations: list[Annotation]) -> list[int | None]:
    """Pixels of every mask, None where it is not known."""
    return [None if a.segmentation is None else int(pixels(a).sum()) for a in annotations]


def outlines(annotation: Annotation) -> list[list[float]]:
    """The polygons of an object."""
    assert annotation.segmentation is not None
    assert not isinstance(annotation.segmentation, dict | Segment)
    return [np.asarray(p).tolist() for p in annotation.segmentation]


def messages(problems: list[Problem], level: str) -> list[str]:
    return [f"{p.record}: {p.message}" for p in problems if p.level == level]
