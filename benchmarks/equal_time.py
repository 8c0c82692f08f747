"""Train one small model for a given processor time, and evaluate it: a row of the tables of docs/benchmarks.

    python benchmarks/equal_time.py --data DATA/nuclei_dsb2018 --model condinst-mobilenetv2-320 \\
        --weights mobilenetv2_100.safetensors --labels boxes --minutes 20 --out condinst-boxes.json

Any data set that `maskkit check` accepts will do; docs/benchmarks/README.md has the public sources of those in the
tables. The weights are timm's ``mobilenetv2_100``; ``--weights auto`` takes what `maskkit train` would.

All models have the same backbone weights (with frozen batch norm), images, augmentation, optimizer (except for the
learning rate, which is the preset's), batch size and budget: 120 processor seconds per minute of ``--minutes``, the
time of two cores. The schedule is fitted to the budget by the speed of the first steps. Forward passes are in bf16
where the processor supports it, else in fp32. Validation is not counted. With ``--labels boxes`` masks are used for
evaluation only; ``--teacher`` draws some, and its time is part of the budget. ``--knob parts=1`` changes a field of
the method's config, for ablations. ``--also instance semantic`` evaluates the weights of a model with several tasks
(Mask2Former) in those too. Results on one machine are reproducible except for the number of steps, which depends on its
speed; ``--steps`` fixes that too.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from common import Training
from common_timing import describe
from maskkit import zoo
from maskkit.api import Segmenter
from maskkit.checkpoints.checkpoint import save_model
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.eval.numbers import shown
from maskkit.eval.rows import shared_classes
from maskkit.eval.task import TASKS
from maskkit.prediction import Categories


def with_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with these classes only; images without any of them stay."""
    return shared_classes(Categories.of(names), dataset)[1] if names else dataset


def knob(text: str) -> tuple[str, Any]:
    """Parse ``NAME=VALUE``; the value is JSON, else text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, help="validation data, if --data is a file without that split")
    parser.add_argument("--allow-outside", action="store_true", help="images may lie outside of the data's folder")
    parser.add_argument("--model", required=True, help="a small preset")
    parser.add_argument(
        "--weights",
        help="mobilenetv2_100.safetensors for the backbone of most presets, a checkpoint, or auto; random without",
    )
    parser.add_argument("--labels", choices=["masks", "boxes"], default="masks")
    parser.add_argument("--teacher", help="built-in or a checkpoint: draws masks in boxes, within the budget")
    parser.add_argument("--classes", nargs="*", default=[], help="classes to train on; all by default")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--steps", type=int, help="fixed number of steps in place of --minutes")
    parser.add_argument("--size", type=int, help="side of a square input; that of the preset by default")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, help="learning rate; that of the preset by default")
    parser.add_argument(
        "--dilation", type=int, default=2, help="distance of neighbours in the pairwise loss, for --labels boxes"
    )
    parser.add_argument("--pairwise", type=float, default=1.0, help="weight of that loss")
    parser.add_argument(
        "--warmup", type=float, default=0.1, help="share of the training over which that weight is warmed up"
    )
    parser.add_argument("--knob", type=knob, action="append", default=[], help="NAME=VALUE in the method's config")
    parser.add_argument("--also", nargs="*", default=[], help="further tasks in which to evaluate the same weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for rows and figures; weights are written beside it")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    task = TASKS[zoo.model_class(given.model).task_of(zoo.preset(given.model).model)]
    train_set, val_set = open_splits(str(given.data), given.val, 0.2, 0, given.allow_outside)
    train_set = with_classes(task.view(train_set), given.classes)
    begin = time.perf_counter()
    settings = {f.name: getattr(given, f.name) for f in fields(Training) if f.name in vars(given)}
    training = Training(**settings, knobs=dict(given.knob))
    model, config, facts = training.run(train_set, given.minutes, given.steps)
    if given.out:
        save_model(given.out.with_suffix(".safetensors"), model, config, train_set.categories, facts)
    segmenter = Segmenter.of(model, config.input, train_set.categories, device="cpu")
    rows, known = segmenter.detect(val_set, batch=4)
    result = segmenter.task.evaluate(rows, known)
    facts["wall_seconds"] = round(time.perf_counter() - begin)
    facts |= {name: shown(value) for name, value in result.metrics.items()}
    for name in given.also:
        other = type(model)(replace(model.config, task=name))  # type: ignore[call-arg]
        other.load_state_dict(model.state_dict())
        segmenter = Segmenter.of(other, config.input, train_set.categories, device="cpu")
        facts[name] = {k: shown(value) for k, value in segmenter.evaluate(val_set, batch=4).metrics.items()}
    print(describe(given.threads))
    print(json.dumps(facts), flush=True)
    if given.out:
        given.out.write_text(json.dumps({"facts": facts, "machine": describe(given.threads), "rows": rows}))


if __name__ == "__main__":
    main()
