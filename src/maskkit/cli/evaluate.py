"""`maskkit eval`: measure a model, or the results file of any tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from maskkit.cli.console import progress, stdout, wrong_usage
from maskkit.config import Tta


def evaluate(
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    task: Literal["instance", "semantic", "panoptic", "proposals"] = "instance",
    split: str | None = None,
    out: Path = Path("runs/eval"),
    batch: int = 1,
    workers: int = 0,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
) -> int:
    """Measure a model, or a COCO results file of any tool: AP, mIoU or PQ table, metrics.json, report.html.

    Example: maskkit eval --model runs/pets/best.safetensors --data pets/

    Example: maskkit eval --predictions results.json --data pets/val.json

    Args:
        data: Folder or annotation file, of any format.
        model: Checkpoint, or built-in. Its classes are matched with those of the data by name.
        predictions: COCO results file, instead of a model.
        task: What a results file is measured as; a model knows its own.
        split: Part of a folder: train, val or test; val where there is one, else all of it.
        out: Folder to write to.
        batch: Images that go through the network together.
        workers: Loader processes.
        tta: Test-time augmentation of a semantic model.
    """
    if (model is None) == (predictions is None):
        wrong_usage("eval needs either --model or --predictions")
    if batch < 1:
        wrong_usage("--batch is 1 at least")
    from maskkit.data import find_splits, open_dataset
    from maskkit.eval.task import TASKS

    splits = find_splits(data)
    dataset = open_dataset(data, split or ("val" if "val" in splits else None))
    if left_out := [p for p in dataset.problems if p.level == "error"]:
        print(f"{len(left_out)} bad records are left out; see them: maskkit check {data}", file=sys.stderr)
    if model is not None:
        from maskkit.api import load

        segmenter = load(model).with_tta(tta)
        judge = segmenter.task
        with progress() as bars:
            bar = bars.add_task("predicting", total=len(dataset))
            rows, dataset = segmenter.detect(dataset, batch, workers, lambda done: bars.advance(bar, done))
        judge.write_results(out, rows, dataset.coco_images(), dataset.categories)
    else:
        assert predictions is not None
        judge = TASKS[task]
        dataset = judge.view(dataset)
        rows = judge.read_results(predictions, dataset)
    result = judge.evaluate(rows, dataset)
    result.save(out / "metrics.json")
    judge.write_report(out / "report.html", result, rows, dataset, title=f"{model or predictions} on {data}")
    stdout().print(result.table())
    print(f"{len(dataset)} images, {len(dataset.categories)} classes: {out / 'report.html'}")
    return 0
