"""Stretched images or images that keep their aspect ratio; trained weights or their moving average (EMA).

    python benchmarks/aspect_and_ema.py --data DATA/building_facades --weights mobilenetv2_100.safetensors --threads 1

Trains a small model once with each ``--resize`` for the same processor time, as ``equal_time.py`` does: 120 seconds per
minute of ``--minutes``. The weights and their moving averages are of the same training, so that the rows of one
``--resize`` differ in nothing else. Both resizes have the input of the preset: with ``pad`` an image is smaller in it.
"""

import argparse
import json
from pathlib import Path

import torch

from common import Training
from common_timing import describe
from maskkit import zoo
from maskkit.api import Segmenter
from maskkit.data import open_splits
from maskkit.eval.numbers import shown
from maskkit.eval.task import TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="maskrcnn-mobilenetv2-320", help="a small preset")
    parser.add_argument("--weights", type=Path, help="backbone weights; random without")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--resize", nargs="+", default=["stretch", "pad"], choices=["stretch", "pad"])
    parser.add_argument("--decays", nargs="+", type=float, default=[0.0, 0.99, 0.998], help="of the EMA; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file to which each row is added as a line of JSON")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = TASKS[zoo.model_class(given.model).task_of(zoo.preset(given.model).model)]
    train_set, val_set = open_splits(str(given.data), None, 0.2, 0)
    train_set = task.view(train_set)
    for resize in given.resize:
        training = Training(given.model, given.data, given.weights, resize=resize, seed=given.seed)
        models, config, facts = training.averages(train_set, given.minutes, None, given.decays)
        for model, decay in zip(models, given.decays, strict=True):
            segmenter = Segmenter.of(model.eval(), config.input, train_set.categories, device="cpu")
            metrics = segmenter.evaluate(val_set, batch=4).metrics
            row = facts | {"resize": resize, "ema": decay} | {name: shown(value) for name, value in metrics.items()}
            print(json.dumps(row), flush=True)
            if given.out:
                with open(given.out, "a") as file:
                    file.write(json.dumps(row | {"data": given.data.name, "machine": describe(given.threads)}) + "\n")
    print(describe(given.threads))


if __name__ == "__main__":
    main()
