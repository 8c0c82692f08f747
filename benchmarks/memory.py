"""Peak resident memory of training, prediction and evaluation, and whether it grows with the number of images.

    python benchmarks/memory.py
    python benchmarks/memory.py --models maskrcnn-mobilenetv2-320 --images 16 64

Images of 800 x 1333 with 300 objects each are drawn. A model with random weights, scaled so that it finds 300 objects
in every image, goes through `maskkit predict`, `maskkit eval` and 8 steps of `maskkit train`, each in a process of its
own that has nothing else in memory.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common_timing import describe
from maskkit.prediction import Categories

SIZE = (800, 1333)
GRID = (12, 25)
"""Rows and columns of objects: 300 of them."""
CATEGORIES = Categories.of(["small", "middle", "large"])
PEAK = "peak MiB "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["yolact-mobilenetv2-320", "maskrcnn-mobilenetv2-320"])
    parser.add_argument("--images", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.command:
        measured(given.command, given.threads)
        return
    if given.make:
        make_checkpoint(given.make[0], Path(given.make[1]))
        return
    print(describe(given.threads))
    print(f"| model, 300 objects in {SIZE[0]} x {SIZE[1]} | " + " | ".join(f"{n} images" for n in given.images) + " |")
    print("| --- |" + " --- |" * len(given.images), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {count: draw(folder / str(count), count) for count in given.images}
        for model in given.models:
            checkpoint = folder / f"{model}.safetensors"
            run("--make", model, str(checkpoint))
            for what in ("predict", "eval", "train"):
                cells = [peak(what, model, checkpoint, data[n], folder, given.threads) for n in given.images]
                print(f"| {model}, {what} | {' | '.join(cells)} |", flush=True)


def peak(what: str, model: str, checkpoint: Path, data: Path, folder: Path, threads: int) -> str:
    """The peak of a command in its own process, in MiB."""
    out = str(folder / "out" / f"{what}-{model}-{data.name}")
    command = {
        "predict": ["predict", str(data / "images"), "--model", str(checkpoint), "--score", "0", "--out", out],
        "eval": ["eval", "--data", str(data / "train.json"), "--model", str(checkpoint), "--out", out],
        "train": [
            *("train", "--model", model, "--data", str(data), "--out", out, "--weights", "random"),
            *("--train.steps", "8", "--train.batch", "4", "--train.workers", "0"),
        ],
    }[what]
    text = run("--threads", str(threads), "--command", *command)
    found = re.search(rf"{PEAK}([\d.]+)", text)
    return f"{float(found[1]):,.0f} MiB" if found else text.strip().splitlines()[-1][:100]


def run(*options: str) -> str:
    """What a process of this script prints."""
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def measured(command: list[str], threads: int) -> None:
    """Run a command of maskkit in this process and print the peak of its memory."""
    import resource

    import torch

    from maskkit.cli import main as maskkit

    torch.set_num_threads(threads)
    with contextlib.suppress(SystemExit):
        maskkit(command)
    print(
        f"{PEAK}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != 'darwin' else 1 << 20)}"
    )


def make_checkpoint(name: str, path: Path) -> None:
    """A model with random weights that keeps 300 objects."""
    import torch

    from maskkit import zoo
    from maskkit.checkpoints.checkpoint import save_model
    from maskkit.config import RunConfig, change
    from maskkit.export.unit_variance import unit_variance

    torch.manual_seed(0)
    preset = zoo.preset(name)
    part = next((p for p in ("regions", "detector", "head") if hasattr(preset.model, p)), "")
    more: dict[str, Any] = {"detections": 300}
    if not hasattr(preset.model, "detections"):
        more = {part: more}
    config = change(preset.model, num_classes=len(CATEGORIES), **more)
    model = unit_variance(zoo.model_class(name)(config), torch.randn(1, 3, *preset.input.size))  # type: ignore[call-arg]
    save_model(path, model, RunConfig(name, config, preset.input), CATEGORIES, {})


def draw(folder: Path, count: int) -> Path:
    """A COCO data set of so many images, one of them also for validation: ellipses on a grid, in noise."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    sides = np.divide(SIZE, GRID)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    images, annotations = [], []
    for number in range(1, count + 1):
        small = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
        path = folder / "images" / f"{number:04}.jpg"
        Image.fromarray(small).resize((SIZE[1], SIZE[0])).save(path)
        images.append({"id": number, "file_name": f"images/{path.name}", "height": SIZE[0], "width": SIZE[1]})
        for place in np.ndindex(*GRID):
            (y, x), (b, a) = (np.array(place) + 0.5) * sides, sides * rng.uniform(0.3, 0.45, 2)
            outline = np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], 1).round(1)
            low, high = outline.min(0), outline.max(0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.choice(CATEGORIES.ids)),
                    "segmentation": [outline.ravel().tolist()],
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float(np.pi * a * b),
                    "iscrowd": 0,
                }
            )
    for name, kept in (("train", images), ("val", images[:1])):
        ids = {image["id"] for image in kept}
        content = {"images": kept, "categories": CATEGORIES.to_coco()}
        content["annotations"] = [a for a in annotations if a["image_id"] in ids]
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


if __name__ == "__main__":
    main()
