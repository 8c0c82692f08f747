"""What is found of many annotations together is what is found of each alone, with nothing to say about it."""

from typing import Any

import numpy as np

from maskkit.data.formats.coco_outlines import Outline, outline, plain_outlines
from maskkit.data.rules import NEAR
from tests.data.written import SIZE, SQUARE, object_row, places, spoil
from tests.fuzz import VALUES


def alone(row: Any, size: tuple[int, int] = SIZE) -> tuple[Outline | None, list[str]]:
    """The outline of one annotation, and what is said about it."""
    said: list[str] = []
    try:
        return outline(row, size, said.append), said
    except ValueError as error:
        return None, [str(error)]


def as_lists(found: Outline | None) -> Any:
    assert found is not None
    assert isinstance(found.mask, list)
    assert all(part.dtype == np.float64 for part in found.mask)
    return [part.tolist() for part in found.mask], found.box, found.stated


def around(parts: list[list[float]]) -> np.ndarray:
    """``x1 y1 x2 y2``"""
    points = np.concatenate([np.reshape(part, (-1, 2)) for part in parts])
    return np.concatenate([points.min(0), points.max(0)])


def test_polygons_and_boxes_near_every_border() -> None:
    rng = np.random.default_rng(0)
    height, width = SIZE
    near_x = np.array([-2, -1, -0.5, 0, 0.1, 7, 20.3, width - 0.5, width, width + 0.7, width + 1, width + 2])
    near_y = np.array([-2, -1, -0.5, 0, 0.1, 5, 21.7, height - 0.5, height, height + 0.7, height + 1, height + 2])
    likely = np.array([1, 2, 2, 8, 8, 8, 8, 8, 8, 2, 2, 1]) / 58
    rows = []
    for _ in range(1500):
        parts = [
            np.stack([rng.choice(near, points, p=likely) for near in (near_x, near_y)], 1).ravel().tolist()
            for points in rng.integers(3, 6, rng.integers(1, 3))
        ]
        sides = around(parts) + rng.choice([0, 0, 0, 0.1, -2.9, 3.1], 4)
        rows.append({"segmentation": parts, "bbox": [*sides[:2].tolist(), *(sides[2:] - sides[:2]).tolist()]})
    together = plain_outlines(rows, [SIZE] * len(rows))
    counted = [0, 0]
    for row, found in zip(rows, together, strict=True):
        wanted, said = alone(row)
        x, y, w, h = row["bbox"]
        if said or (abs(around(row["segmentation"]) - [x, y, x + w, y + h]) > NEAR).any():
            assert found is None
        else:
            assert as_lists(found) == as_lists(wanted)
        counted[found is not None] += 1
    assert min(counted) > 200


def test_whatever_stands_anywhere() -> None:
    good = object_row(1, segmentation=[SQUARE, [11, 12, 13, 14.5, 12, 19]])
    for place in [("segmentation",), ("bbox",), *places(good)]:
        for value in VALUES:
            row = spoil(good, place, value) if len(place) > 1 else good | {place[0]: value}
            others = [good, row, "no row", row, good]
            together = plain_outlines(others, [SIZE] * 5)
            for found in (together[1], together[3]):
                if found is not None:
                    wanted, said = alone(row)
                    assert as_lists(found) == as_lists(wanted)
                    assert not said
            assert together[2] is None


def test_images_of_unknown_size_and_no_rows() -> None:
    good = object_row(1)
    assert plain_outlines([], []) == []
    assert plain_outlines([{}, None, good], [SIZE, SIZE, None]) == [None] * 3
    assert plain_outlines([good], [(0, 0)]) == [None]
    (found,) = plain_outlines([good], [SIZE])
    assert as_lists(found) == ([SQUARE], (10, 10, 30, 30), None)
