"""The tiny method of these tests, found by the registry as any other, and a data set that it can learn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from maskkit import zoo
from maskkit.config import DataConfig, RunConfig


@pytest.fixture(autouse=True)
def _plain_reports(without_figures) -> None:
    """Files about reports draw figures: there, `without_figures` does nothing."""


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """Folder of a COCO data set: 16 + 4 dark images of 64 x 64 pixels with a red and a green rectangle each."""
    folder = tmp_path_factory.mktemp("drawn")
    rng = np.random.default_rng(0)
    for split, ids in (("train", range(1, 17)), ("val", range(17, 21))):
        images, annotations = [], []
        for i in ids:
            pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
            for colour in (0, 1):
                w, h, y = rng.integers(16, 32, 3).tolist()
                x = 32 * colour + int(rng.integers(0, 32 - w + 1))
                pixels[y : y + h, x : x + w, colour] += 170
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {"id": 2 * i + colour, "image_id": i, "category_id": colour + 1, "iscrowd": 0}
                    | {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]}
                )
            Image.fromarray(pixels).save(folder / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
        classes = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": classes}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def tiny():
    """Configuration of a run of the tiny method of tests/plugin."""
    preset = zoo.preset("tinynet")
    return RunConfig("tinynet", preset.model, preset.input, preset.augment, preset.train)


@pytest.fixture
def run(tiny, drawn):
    """Configuration of a run of the tiny method on the drawn images."""
    return replace(tiny, data=DataConfig(str(drawn)))
