"""The time of grouping a thousand instances on an image of 1333 x 800 pixels, from maps to run-length masks.

    python benchmarks/grouping.py

The maps are those of a perfect network: discs on a jittered grid, some of which touch, with kernels shrunk as in
PSENet's targets, or with embeddings at the position of their disc plus noise. `decode` groups them, scores the groups
and makes masks in original pixels.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from common_timing import describe
from maskkit.decode import Embeddings, Kernels, decode
from maskkit.decode.clustering import cluster, expand
from maskkit.models.psenet import shrink
from maskkit.prediction import Categories, ImageMeta

RATIOS = np.linspace(1, 0.4, 7)


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    """Median processor time over ``runs`` calls after one to warm up; everything here runs on one thread."""
    call()
    times = []
    for _ in range(runs):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times)


def discs(count: int, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The index of the disc at each pixel (-1: none), and the kernels of all discs together (n, h, w)."""
    height, width = size
    columns = round((count * width / height) ** 0.5)
    rows = -(-count // columns)
    pitch = min(height / rows, width / columns)
    owners, kernels = np.full(size, -1), np.zeros((len(RATIOS), *size), bool)
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        cy = (i // columns + 0.5) * height / rows + rng.uniform(-0.1, 0.1) * pitch
        cx = (i % columns + 0.5) * width / columns + rng.uniform(-0.1, 0.1) * pitch
        extent = int(pitch)
        window = (
            slice(max(int(cy) - extent, 0), int(cy) + extent),
            slice(max(int(cx) - extent, 0), int(cx) + extent),
        )
        inside = np.hypot(y[window] - cy, x[window] - cx) < rng.uniform(0.35, 0.52) * pitch
        inside &= owners[window] < 0
        owners[window][inside] = i
        kernels[:, *window] |= shrink(inside, RATIOS, 20)
    return owners, kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    size = tuple(given.size)
    owners, kernels = discs(given.instances, size, rng)
    meta = ImageMeta(1, "", size, size)
    names = Categories.of(["disc"])
    common = {"classes": np.zeros((1, *size), np.float32)}
    growing = common | {"kernels": np.where(kernels, 4, -4).astype(np.float32)[None]}
    half = owners[::2, ::2]
    places = np.stack(np.unravel_index(np.arange(owners.size), size)).reshape(2, *size)[:, ::2, ::2] / 16
    means = np.stack([np.bincount(half[half >= 0], p[half >= 0]) / np.bincount(half[half >= 0]) for p in places], 1)
    embeddings = np.zeros((8, *half.shape), np.float32)
    embeddings[:2] = 1.5 * means[half].transpose(2, 0, 1)
    embeddings += rng.normal(0, 0.1, embeddings.shape)
    clustering = {
        "classes": common["classes"][:, ::2, ::2],
        "embeddings": embeddings[None],
        "foreground": np.where(half >= 0, 0.9, 0.1).astype(np.float32)[None],
    }
    print(describe(1))
    print(f"{given.instances} instances, {size[1]} x {size[0]} pixels, {int((owners >= 0).sum())} of them in objects")
    points = embeddings[:, half >= 0].T
    rows = {
        "expand": lambda: expand(kernels, 9),
        "expand, decode": lambda: decode(Kernels(min_area=9), growing, [meta], names),
        "cluster (stride 2)": lambda: cluster(points, 0.75),
        "cluster, decode": lambda: decode(Embeddings(0.75, min_area=2), clustering, [meta], names),
    }
    for name, call in rows.items():
        result = call()
        found = (
            f"{len(result[0])} found" if isinstance(result, list) else f"{len(np.unique(result[result >= 0]))} numbers"
        )
        print(f"  {name:20} {milliseconds(call, given.runs):8.1f} ms   {found}")


if __name__ == "__main__":
    main()
