"""Small objects in enlarged photographs: prediction in tiles beside prediction of the whole image.

    python benchmarks/small_objects.py --data DATA/coco_instances --longer 1920 --tile 640

Each validation image is enlarged until its longer side has ``--longer`` pixels, and predicted whole and in tiles. The
masks are brought back to the original pixels, so that all rows are measured against the same ground truth, and COCO's
ranges of size mean the same. The first row is the original image.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from common_timing import describe
from maskkit.api import load
from maskkit.data import open_splits
from maskkit.eval.rows import shared_classes, translated
from maskkit.prediction import ImageMeta, Masks, Prediction

Predict = Callable[[UInt8[np.ndarray, "h w 3"]], Prediction]


def enlarged(image: UInt8[np.ndarray, "h w 3"], longer: int) -> UInt8[np.ndarray, "_ _ 3"]:
    factor = longer / max(image.shape[:2])
    size = round(image.shape[1] * factor), round(image.shape[0] * factor)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def rows_of(prediction: Prediction, meta: ImageMeta) -> Iterator[dict]:
    """COCO rows of the original image: every pixel takes the value at its centre in the enlarged one."""
    instances = prediction.instances
    assert instances is not None
    assert instances.masks is not None
    height, width = instances.masks.size
    y = ((np.arange(meta.size[0]) + 0.5) * height / meta.size[0]).astype(int)
    x = ((np.arange(meta.size[1]) + 0.5) * width / meta.size[1]).astype(int)
    factors = np.array([meta.size[1] / width, meta.size[0] / height] * 2)
    for number in range(len(instances)):
        one = instances[[number]]
        assert one.masks is not None
        small = Masks.from_dense(one.masks.dense()[:, y[:, None], x])
        one = replace(one, boxes=(one.boxes * factors).astype(np.float32), masks=small)
        yield from Prediction(meta, prediction.categories, instances=one).to_coco()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--longer", type=int, default=1920)
    parser.add_argument("--tile", type=int, nargs="+", default=[640])
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--images", type=int, help="the first so many images; by default all")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads), flush=True)
    segmenter = load(given.model, "cpu")
    dataset = open_splits(str(given.data), None, 0.2, 0)[1]
    ids, known = shared_classes(segmenter.categories, dataset)
    known = known.subset(range(given.images or len(known)))
    ways: dict[str, Predict] = {
        "original": lambda image: segmenter.predict(image, 0.05),
        "enlarged, whole": lambda image: segmenter.predict(enlarged(image, given.longer), 0.05),
    }
    for tile in given.tile:
        tiled = segmenter.with_tiles(tile, given.overlap)
        ways[f"enlarged, tiles of {tile}"] = lambda image, tiled=tiled: tiled.predict(
            enlarged(image, given.longer), 0.05
        )
    print("| images | AP | APs | APm | APl | s per image |\n|" + " --- |" * 6)
    for name, predict in ways.items():
        begin, found = time.process_time(), []
        for index in range(len(known)):
            image, meta = known.pixels(index)
            found += rows_of(predict(image), meta)
        took = (time.process_time() - begin) / len(known)
        metrics = segmenter.task.evaluate(translated(found, ids), known).main
        figures = " | ".join(f"{metrics[key]:.3f}" for key in ("AP", "APs", "APm", "APl"))
        print(f"| {name} | {figures} | {took:.2f} |", flush=True)


if __name__ == "__main__":
    main()
