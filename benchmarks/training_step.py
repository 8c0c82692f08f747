"""Where a training step of small presets goes: processor time of its parts.

    python benchmarks/training_step.py --data DATA/building_facades
    python benchmarks/training_step.py --data DATA/building_facades --no-winograd yolact-mobilenetv2-320

Steps as `maskkit train` takes them, in fp32 from random weights, with a moving average of the weights; the batches,
with the preset's augmentation, are loaded in the same process. Printed is the fastest step after the first.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from common_timing import describe
from maskkit import zoo
from maskkit.config import DataConfig, RunConfig
from maskkit.data.loader import train_loader
from maskkit.engine.data import open_data
from maskkit.engine.optim import make_optimizer, update_average
from maskkit.nn.winograd import use_winograd

PARTS = ("loader", "forward", "targets and losses", "backward", "optimizer", "EMA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"{method}-mobilenetv2-320" for method in ("yolact", "condinst", "maskrcnn")]
    parser.add_argument("presets", nargs="*", default=names)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-winograd", action="store_true", help="PyTorch's own convolutions")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    print(f"| preset, batch {given.batch} | step | {' | '.join(PARTS)} |\n|" + " --- |" * (len(PARTS) + 2), flush=True)
    for name in given.presets:
        fastest = min(measured(name, given)[1:], key=sum)
        shares = [f"{100 * part / sum(fastest):.0f} %" for part in fastest]
        print(f"| `{name}` | {1000 * sum(fastest):,.0f} ms | {' | '.join(shares)} |", flush=True)


def measured(name: str, given: argparse.Namespace) -> list[list[float]]:
    """Processor seconds of the `PARTS` of each step."""
    preset = zoo.preset(name)
    settings = replace(preset.train, steps=given.steps, batch=given.batch, workers=0, precision="fp32")
    config = RunConfig(name, preset.model, preset.input, preset.augment, settings, DataConfig(str(given.data)))
    train_set, _, _ = open_data(config)
    torch.manual_seed(settings.seed)
    model = zoo.model_class(name)(replace(config.model, num_classes=len(train_set.categories)))
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if not given.no_winograd:
        use_winograd(model, learns=True)
    average, optimizer = deepcopy(model).requires_grad_(False), make_optimizer(model, settings)
    batches = train_loader(train_set, config, 0, given.steps)
    steps = []
    for step in range(given.steps):
        marks = [time.process_time()]

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.process_time())

        batch = next(batches)
        mark()
        raw = model(batch.images.contiguous(memory_format=torch.channels_last), batch.sizes, batch.targets)
        mark()
        total = torch.stack(list(model.loss(raw, batch).values())).sum()
        mark()
        total.backward()
        mark()
        optimizer.step()
        optimizer.zero_grad()
        mark()
        update_average(average, model, 0.999, step)
        mark()
        steps.append([after - before for before, after in pairwise(marks)])
    return steps


if __name__ == "__main__":
    main()
