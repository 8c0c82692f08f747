"""Milliseconds per image of several checkpoints, from the image file to run-length masks.

    python benchmarks/latency.py --data DATA/nuclei_dsb2018 runs/condinst.safetensors runs/yolact.safetensors

``--data`` is any data set that `maskkit check` accepts. The models take turns on every image, so that other work on the
machine affects all of them alike.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from common import describe
from maskkit.api import load
from maskkit.data import open_splits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.05)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    val_set = open_splits(str(given.data), None, 0.2, 0)[1]
    models = {path.stem: load(path, "cpu") for path in given.checkpoints}
    times: dict[str, list[float]] = {name: [] for name in models}
    found = dict.fromkeys(models, 0)
    for number, record in enumerate([val_set.records[0], *val_set.records[: given.images]]):
        for name, model in models.items():
            begin = time.perf_counter()
            objects = len(model.predict(record.path, score=given.score))
            if number:  # the first image warms up
                times[name].append((time.perf_counter() - begin) * 1000)
                found[name] += objects
    print(describe(given.threads))
    fastest = min(statistics.median(t) for t in times.values())
    for name, milliseconds in times.items():
        middle = statistics.median(milliseconds)
        objects = found[name] / len(milliseconds)
        print(f"{name}: {middle:.1f} ms, {middle / fastest:.2f} of the fastest, {objects:.0f} objects per image")


if __name__ == "__main__":
    main()
