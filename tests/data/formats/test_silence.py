"""What a reader loses it says: no value in a file makes an image or an object vanish without a new problem."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from maskkit.data import open_dataset
from maskkit.errors import DataError
from tests.data.formats.samples import SAMPLES
from tests.data.written import places, spoil

VALUES = ("x", "1_0", -1, 7.5, True, 10**30, float("nan"), [None], {})
FORMATS = ("coco", "coco_panoptic", "labelme", "labelstudio", "via", "via_of_version_3", "datumaro", "supervisely")


def _read(folder: Path) -> tuple[int, int, set[str]]:
    """Images, objects and problems."""
    dataset = open_dataset(folder)
    objects = sum(len(record.annotations) for record in dataset.records)
    return len(dataset), objects, {str(problem) for problem in dataset.problems}


@pytest.mark.parametrize("name", [*FORMATS, "cityscapes"])
def test_nothing_vanishes_without_a_word(tmp_path: Path, name: str) -> None:
    SAMPLES[name](tmp_path)
    images, objects, known = _read(tmp_path)
    rng = random.Random(name)
    files = sorted(tmp_path.rglob("*.json"))
    for _ in range(60):
        file = rng.choice(files)
        content = json.loads(file.read_text())
        leaves = [place for place in places(content) if not isinstance(_at(content, place), list | dict)]
        place, value = rng.choice(leaves), rng.choice(VALUES)
        before = file.read_bytes()
        file.write_text(json.dumps(spoil(content, place, value)))
        try:
            found = _read(tmp_path)
        except DataError:
            continue  # said
        finally:
            file.write_bytes(before)
        assert found[2] - known or (found[0] >= images and found[1] >= objects), (file.name, place, value)


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content
