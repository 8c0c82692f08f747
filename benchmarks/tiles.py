"""Prediction in tiles: a mosaic of small images beside the images alone.

    python benchmarks/tiles.py --data DATA/nuclei_dsb2018 --checkpoint runs/nuclei/best.safetensors --side 12000

The validation images fill the cells of a mosaic of ``--side`` x ``--side`` pixels, again and again, each time flipped
another way. The mosaic is predicted in tiles whose grid is not that of the cells; the same cells are predicted one by
one. Printed are the AP of both on the cells, how often the objects that a border of a tile cuts are found, beside those
that no border cuts (a network finds other objects when its input is shifted), time, and the peak memory beside that of
the decoded image.
"""

import argparse
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from scipy import ndimage

from common_timing import describe
from maskkit.api import Segmenter, load
from maskkit.config import InputConfig
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.decode import OverInput
from maskkit.eval.instance.metric import evaluate
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.windows import Window, windows
from maskkit.infer.predict import Predictor
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction

Row = dict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="without it, bright parts of the image are the objects")
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--cell", type=int, default=400)
    parser.add_argument("--tile", type=int, default=400)
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiff", action="store_true", help="predict from a file of which one tile at a time is read")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    segmenter = load(given.checkpoint, "cpu") if given.checkpoint else bright(given.tile)
    _, val_set = open_splits(str(given.data), None, 0.2, 0)
    cells = given.side // given.cell
    side = cells * given.cell
    pixels, truth = mosaic(val_set, cells, given.cell)
    segmenter.predict(pixels[: given.tile, : given.tile])
    with tempfile.TemporaryDirectory() as folder:
        source = written(pixels, Path(folder)) if given.tiff else pixels
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, begin, clock = status("VmRSS"), time.process_time(), time.perf_counter()
        whole = segmenter.predict(source, score=0.05, tile=given.tile, overlap=given.overlap)
        took, wall = time.process_time() - begin, time.perf_counter() - clock
        peak = status("VmHWM") - before
    tiles = windows((side, side), given.tile, given.overlap)
    print(
        f"{side} x {side} pixels, {len(tiles)} tiles of {given.tile}: {took:.0f} s of the processor, "
        f"{1000 * took / len(tiles):.0f} ms a tile; {wall:.0f} s by the clock"
    )
    kind = "a tiled TIFF, deflate" if given.tiff else "an array, which is copied"
    print(f"{kind}: {pixels.nbytes / 2**20:.0f} MiB of pixels; memory grew by {peak:.0f} MiB while it was predicted")
    found = by_cell(whole, cells, given.cell)
    alone = list(one_by_one(segmenter, pixels, cells, given.cell))
    single = [row for p in alone for row in p.to_coco()]
    together = [row for p in found for row in p.to_coco()]
    for name, rows in (("in tiles", together), ("cell by cell", single)):
        result = evaluate(rows, truth, ["segm"])
        print(f"{name}: {len(rows)} objects; mask AP {result.main['AP']:.4f}, AP50 {result.main['AP50']:.4f}")
    once(truth, alone, found, tiles, given.cell, segmenter.score)


class Bright:
    """A runtime that finds connected bright parts: a detector that sees the same in every tile, and is often wrong."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        (image,) = images.mean(1)
        parts, _ = ndimage.label(image > 60)
        found = [(place, parts[place] == n) for n, place in enumerate(ndimage.find_objects(parts), 1)]
        found = [(place, mask) for place, mask in found if mask.sum() >= 20]
        masks = np.zeros((1, len(found), *image.shape), np.float32)
        boxes, scores = np.zeros((1, len(found), 4), np.float32), np.zeros((1, len(found)), np.float32)
        for k, ((rows, columns), mask) in enumerate(found):
            masks[0, k, rows, columns] = mask
            corners = columns.start, rows.start, columns.stop, rows.stop
            boxes[0, k] = np.divide(corners, image.shape[::-1] * 2)
            scores[0, k] = 0.5 + image[rows, columns][mask].mean() / 512
        labels = np.zeros_like(scores)
        return {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks, "mask_scores": scores}


def bright(tile: int) -> Segmenter:
    input = InputConfig(size=(tile, tile), resize="pad", mean=(0, 0, 0), std=(1, 1, 1))
    return Segmenter(Predictor(Bright(), OverInput(), input, Categories.of(["nucleus"])), "instance", {"score": 0.5})


def written(pixels: np.ndarray, folder: Path) -> str:
    """A tiled TIFF of the pixels."""
    import tifffile

    path = folder / "mosaic.tif"
    tifffile.imwrite(path, pixels, tile=(512, 512), compression="zlib", photometric="rgb")
    return str(path)


def mosaic(data: Dataset, cells: int, cell: int) -> tuple[UInt8[np.ndarray, "s s 3"], dict]:
    """The pixels, and COCO ground truth with one image per cell; an image larger than a cell is cut."""
    pixels = np.zeros((cells * cell, cells * cell, 3), np.uint8)
    truth: dict = {"images": [], "annotations": [], "categories": data.categories.to_coco()}
    source = data.truth()
    masks: dict = {}
    for row in source["annotations"]:
        masks.setdefault(row["image_id"], []).append((row["category_id"], row["segmentation"]))
    for number in range(cells**2):
        index, flip = number % len(data), number // len(data) % 4
        image, meta = data.pixels(index)
        size = min(image.shape[0], cell), min(image.shape[1], cell)
        top, left = number // cells * cell, number % cells * cell
        pixels[top : top + size[0], left : left + size[1]] = flipped(image, flip)[: size[0], : size[1]]
        truth["images"].append({"id": number + 1, "height": cell, "width": cell})
        for category, mask in masks.get(meta.image_id, []):
            dense = np.zeros((1, cell, cell), bool)
            dense[0, : size[0], : size[1]] = flipped(rle_codec.decode([mask], meta.size)[0], flip)[: size[0], : size[1]]
            rle = rle_codec.encode(dense)[0]
            x1, y1, x2, y2 = map(float, rle_codec.boxes([rle])[0])
            if x2 > x1:
                row = {"id": len(truth["annotations"]) + 1, "image_id": number + 1, "category_id": category}
                row |= {"segmentation": rle, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
                truth["annotations"].append(row | {"area": float(dense.sum())})
    return pixels, truth


def flipped(array: np.ndarray, flip: int) -> np.ndarray:
    """One of four mirror images."""
    return array[:: -1 if flip & 1 else 1, :: -1 if flip & 2 else 1]


def one_by_one(segmenter: Segmenter, pixels: np.ndarray, cells: int, cell: int) -> Iterator[Prediction]:
    """The predictions for the cells alone."""
    places = [(row * cell, column * cell) for row in range(cells) for column in range(cells)]
    return segmenter.predict_many((pixels[y : y + cell, x : x + cell] for y, x in places), score=0.05)


def by_cell(whole: Prediction, cells: int, cell: int) -> list[Prediction]:
    """The objects of the mosaic whose centres lie in each cell, as predictions for the cells."""
    found = whole.instances
    assert found is not None
    assert found.masks is not None
    centres = ((found.boxes[:, :2] + found.boxes[:, 2:]) / 2 // cell).astype(int)
    owner = centres[:, 1] * cells + centres[:, 0]
    out = []
    for number in range(cells**2):
        index = np.flatnonzero(owner == number)
        top, left = number // cells * cell, number % cells * cell
        corner = np.array([left, top] * 2, np.float32)
        masks = [within(rle, top, left, cell) for rle in found.masks[index].rle()]
        boxes = np.clip(found.boxes[index] - corner, 0, cell)
        part = Instances(boxes, found.labels[index], found.scores[index], Masks((cell, cell), masks))
        meta = ImageMeta(number + 1, "", (cell, cell), (cell, cell))
        out.append(Prediction(meta, whole.categories, instances=part))
    return out


def within(rle: rle_codec.Rle, top: int, left: int, cell: int) -> rle_codec.Rle:
    """The part of a mask of the mosaic that lies in a cell."""
    region, y, x = rle_codec.decode_region(rle)
    region = region[max(top - y, 0) : top + cell - y, max(left - x, 0) : left + cell - x]
    return rle_codec.encode_region(region, max(y - top, 0), max(x - left, 0), (cell, cell))


def once(
    truth: dict, alone: list[Prediction], found: list[Prediction], tiles: list[Window], cell: int, score: float
) -> None:
    """How often objects that the network finds in the cell alone are found in the mosaic: cut by a border, and not."""
    lines = [sorted({getattr(t.own, side) for t in tiles}) for side in ("left", "top")]
    cells = math.isqrt(len(alone))
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    objects: dict[int, list[tuple[Row, bool]]] = {}
    for row in truth["annotations"]:
        top, left = (row["image_id"] - 1) // cells * cell, (row["image_id"] - 1) % cells * cell
        x, y, w, h = row["bbox"]
        cut = any(left + x < n < left + x + w for n in lines[0]) or any(top + y < n < top + y + h for n in lines[1])
        objects.setdefault(row["image_id"], []).append((row["segmentation"], cut))
    for number, pairs in objects.items():
        masks, hits = [mask for mask, _ in pairs], []
        for prediction in (alone[number - 1], found[number - 1]):
            instances = prediction.instances
            assert instances is not None
            assert instances.masks is not None
            sure = instances.masks[instances.scores >= score].rle()
            hits.append((rle_codec.iou(masks, sure) >= 0.5).sum(1))
        for (_, cut), one, many in zip(pairs, *hits, strict=True):
            if one == 1:
                counts[cut][int(min(many, 2))] += 1
    for cut, found_so in counts.items():
        if total := sum(found_so.values()):
            shares = (found_so[n] / total for n in (1, 0, 2))
            print(
                f"of {total} objects that {'a' if cut else 'no'} border between tiles cuts and that are found in their "
                "cell: found once {:.3f}, not at all {:.3f}, more than once {:.3f}".format(*shares)
            )


def status(name: str) -> float:
    """A line of the process's status, in MiB."""
    return int(re.findall(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


if __name__ == "__main__":
    main()
