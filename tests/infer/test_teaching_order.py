"""The order in which images are worth labelling."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskkit.errors import DataError
from maskkit.infer.teaching_order import Place, appearance, doubt, teaching_order, write_order


def test_doubt_is_the_expected_number_of_changes() -> None:
    assert doubt([], 0.4) == 0
    assert doubt([0.4], 0.4) == pytest.approx(0.5)
    assert doubt([1.0, 0.05], 0.4) == 0  # certain, and too weak to count
    assert doubt([0.2, 0.7], 0.4) == pytest.approx(0.25 + 0.25)
    assert doubt([0.5], 0.0) == pytest.approx(0.25)
    assert doubt([0.5], 1.0) == pytest.approx(0.25)


def test_images_in_doubt_that_look_unlike_come_first() -> None:
    same, other, third = np.zeros(3), np.array([4.0, 0, 0]), np.array([0, 4.0, 0])
    places = teaching_order([5.0, 4.9, 1.0, 0.0], [same, same, other, third])
    assert [p.index for p in places] == [0, 2, 3, 1]
    assert places[0] == Place(0, 5.0, 1.0)
    assert places[-1] == Place(1, 4.9, 0.0)
    assert all(0 <= p.distance <= 1 for p in places)


def test_without_doubt_or_differences_the_order_stays() -> None:
    assert [p.index for p in teaching_order([0.0] * 3, [np.zeros(2)] * 3)] == [0, 1, 2]
    assert teaching_order([1.0, 3.0, 2.0], [np.zeros(2)] * 3)[0].index == 1
    assert teaching_order([], []) == []


def test_appearance_tells_colours_and_edges(tmp_path: Path) -> None:
    across = np.zeros((80, 100, 3), np.uint8)
    across[:, ::8] = 255
    images = {"black": across * 0, "red": across * 0 + np.array([255, 0, 0], np.uint8), "bars": across}
    images |= {"turned": np.ascontiguousarray(across.transpose(1, 0, 2))}
    looks = []
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        looks.append(appearance(tmp_path / f"{name}.png"))
    apart = np.linalg.norm(np.array(looks)[:, None] - np.array(looks), axis=2)
    assert (apart[~np.eye(4, dtype=bool)] > 0.1).all()
    with pytest.raises(DataError, match="nowhere"):
        appearance(tmp_path / "nowhere.png")


def test_the_order_is_a_table(tmp_path: Path) -> None:
    write_order(tmp_path / "order.csv", [Place(1, 2.5, 1.0), Place(0, 0.0, 0.25)], [("a,b.png", 3), ("c.png", 0)])
    rows = list(csv.reader((tmp_path / "order.csv").open(newline="")))
    assert rows[1:] == [["1", "c.png", "2.500", "1.000", "0"], ["2", "a,b.png", "0.000", "0.250", "3"]]
