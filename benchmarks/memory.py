"""Peak resident memory of training and of evaluation, each in a process of its own.

    python benchmarks/memory.py --data DATA/building_facades

``--data`` is any data set that `maskkit check` accepts; docs/benchmarks/README.md has the public sources of ours.
"""

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from common import describe


def measure(what: str, data: Path, preset: str) -> None:
    """Run a few training steps, or predict and evaluate the validation set, and print the peak."""
    import torch

    from maskkit import zoo
    from maskkit.config import DataConfig, RunConfig, change
    from maskkit.data import open_splits
    from maskkit.data.loader import train_loader
    from maskkit.eval.instance.metric import evaluate
    from maskkit.eval.rows import rows_of
    from maskkit.infer.torch_runtime import predictor

    torch.set_num_threads(2)
    train_set, val_set = open_splits(str(data), None, 0.2, 0)
    found = zoo.preset(preset)
    config = RunConfig(
        preset,
        change(found.model, num_classes=len(train_set.categories)),
        found.input,
        train=replace(found.train, workers=0),
        data=DataConfig(train=str(data)),
    )
    model = zoo.model_class(preset)(config.model)  # type: ignore[call-arg]
    if what == "training":
        model.train()
        for batch in train_loader(train_set, config, 0, 4):
            torch.stack(
                list(model.loss(model(batch.images, batch.sizes, batch.targets), batch).values())
            ).sum().backward()
            model.zero_grad()
    else:
        found = predictor(model, config.input, val_set.categories)
        rows = rows_of(found.dataset(val_set, batch=config.train.batch))
        evaluate(rows, val_set.coco())
        print(f"{len(val_set)} images, {len(rows)} detections with masks; ", end="")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}, batch {config.train.batch}: peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="yolact-mobilenetv2-320")
    parser.add_argument("--only", choices=["training", "evaluating"])
    given = parser.parse_args()
    if given.only:
        measure(given.only, given.data, given.model)
    else:
        for what in ("training", "evaluating"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", what], check=True)
        print(describe(2))
