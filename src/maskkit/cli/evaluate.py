"""`maskkit eval`: evaluate a model, or a results file of any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskkit.cli.console import progress, stdout, wrong_usage
from maskkit.config import Tta
from maskkit.ranges import Count, Workers
from maskkit.terminal import complain, say


def evaluate(
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    task: Literal["instance", "semantic", "panoptic", "proposals"] = "instance",
    split: str | None = None,
    allow_outside: bool = False,
    out: Path = Path("runs/eval"),
    device: str | None = None,
    batch: Count = 1,
    workers: Workers = 0,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
) -> int:
    """Evaluate a model, or a COCO results file of any tool: AP, mIoU or PQ, metrics.json and report.html.

    Example: maskkit eval --model runs/pets/best.safetensors --data pets/

    Example: maskkit eval --predictions results.json --data pets/val.json

    Args:
        data: Folder or annotation file, in any format.
        model: Checkpoint, or built-in. Its classes are matched to those of the data by name.
        predictions: COCO results file, in place of a model.
        task: Task of a results file; a model has its own.
        split: Split of a folder: train, val or test. By default val where there is one, else all images.
        allow_outside: Use images outside of the data set's folder too.
        out: Folder to write to.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        batch: Images per forward pass.
        workers: Threads that read and preprocess images.
        tta: Test-time augmentation, for semantic models.
    """
    if (model is None) == (predictions is None):
        wrong_usage("eval takes either --model or --predictions")
    from maskkit.data import find_splits, open_dataset, open_truth
    from maskkit.eval.page import attempt
    from maskkit.eval.task import TASKS

    splits = find_splits(data)
    chosen_split = split or ("val" if "val" in splits else None)
    # results are measured without images
    dataset = (
        open_truth(data, chosen_split, allow_outside)
        if model is None
        else open_dataset(data, chosen_split, allow_outside)
    )
    if left_out := [p for p in dataset.problems if p.level == "error" and not p.measured]:
        complain(f"{len(left_out)} bad records were left out; list them: maskkit check {data}")
    if model is not None:
        from maskkit.api import load

        segmenter = load(model, device).with_tta(tta)
        chosen = segmenter.task
        with progress() as bars:
            bar = bars.add_task("predicting", total=len(dataset))
            rows, dataset = segmenter.detect(dataset, batch, workers, lambda done: bars.advance(bar, done))
        chosen.write_results(out, rows, dataset.coco_images(), dataset.categories)
    else:
        assert predictions is not None
        chosen = TASKS[task]
        dataset = chosen.view(dataset)
        rows = chosen.read_results(predictions, dataset)
    result = chosen.evaluate(rows, dataset)
    result.save(out / "metrics.json")
    report, title = out / "report.html", f"{model or predictions} on {data}"
    failed = attempt(report, lambda: chosen.write_report(report, result, rows, dataset, title=title))
    stdout().print(result.table())
    say(f"{len(dataset)} images, {len(dataset.categories)} classes: {out / 'metrics.json' if failed else report}")
    if failed:
        complain(failed)
    return 0
