"""`maskkit eval`: evaluate a model, or a results file of any tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from maskkit.cli.console import progress, stdout, wrong_usage
from maskkit.cli.options import Fetch
from maskkit.config import Tta
from maskkit.errors import DataError
from maskkit.geometry.windows import OVERLAP
from maskkit.ranges import Batch, Count, Pixels, Share, Workers
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
    threads: Count | None = None,
    batch: Batch = 1,
    workers: Workers = 0,
    tile: Pixels | None = None,
    overlap: Share = OVERLAP,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Evaluate a model, or a COCO results file of any tool: AP, mIoU or PQ, metrics.json and report.html.

    Example: maskkit eval --model runs/pets/best.safetensors --data pets/

    Example: maskkit eval --predictions results.json --data pets/val.json

    Args:
        data: Folder or annotation file, in any format.
        model: Checkpoint, exported file (.onnx, .xml, .pt2), built-in, or a preset with published weights. Its classes
            are matched to those of the data by name.
        predictions: COCO results file, in place of a model.
        task: Task of a results file; a model has its own.
        split: Split of a folder: train, val or test. By default val where there is one, else all images.
        allow_outside: Use images outside of the data set's folder too.
        out: Folder to write to.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        threads: Processor cores of the network; by default all. Up to four images are predicted at the same time, each
            on its share of them.
        batch: Images per forward pass.
        workers: Threads that read and preprocess images.
        tile: Predict large images in tiles with this many rows and columns.
        overlap: Share of a tile that its neighbours see too, below 0.5.
        tta: Test-time augmentation, for semantic models.
        fetch: Downloads.
    """
    if (model is None) == (predictions is None):
        wrong_usage("eval takes either --model or --predictions")
    fetch.apply()
    from maskkit.api import load
    from maskkit.eval.page import attempt
    from maskkit.eval.task import TASKS
    from maskkit.files import write_json

    segmenter = load(model, device, threads, throughput=True).with_tta(tta) if model is not None else None
    if tile is not None:
        if segmenter is None:
            wrong_usage("--tile is for a model; results of any tool are measured as they are")
        segmenter = segmenter.with_tiles(tile, overlap)
    chosen = segmenter.task if segmenter is not None else TASKS[task]
    dataset = chosen.open(data, "val", split, images=segmenter is not None, allow_outside=allow_outside)
    if left_out := [p for p in dataset.problems if p.level == "error" and not p.measured]:
        complain(f"{len(left_out)} bad records were left out; list them: maskkit check {data}")
    if len(dataset) == 0:
        raise DataError(f"{data}: has no usable image, so that nothing can be measured; maskkit check {data} lists why")
    if segmenter is not None:
        with progress() as bars:
            bar = bars.add_task("predicting", total=len(dataset))
            rows, dataset = segmenter.detect(dataset, batch, workers, lambda done: bars.advance(bar, done))
        chosen.write_results(out, rows, dataset.coco_images(), dataset.categories)
    else:
        assert predictions is not None
        dataset = chosen.view(dataset)
        rows = chosen.read_results(predictions, dataset)
    result = chosen.evaluate(rows, dataset)
    if next(iter(result.metrics.values())) is None:
        raise DataError(f"{data}: has no {chosen.noun} of the classes that are measured, so that there is no result")
    best = chosen.threshold(result, rows, dataset)
    write_json(out / "metrics.json", result.to_json() | ({"threshold": best._asdict()} if best is not None else {}))
    report, title = out / "report.html", f"{model or predictions} on {data}"
    failed = attempt(report, lambda: chosen.write_report(report, result, rows, dataset, title=title))
    stdout().print(result.table())
    if best is not None:
        say(f"{best}" + (f"; use it with maskkit predict --score {best.score:.2f}" if 0 <= best.score <= 1 else ""))
    say(f"{len(dataset)} images, {len(dataset.categories)} classes: {out / 'metrics.json' if failed else report}")
    if failed:
        complain(failed)
    return 0
