"""Evaluation during a training: when it is due, which weights are kept, and the report at the end."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.header import read_header
from maskkit.config import RunConfig
from maskkit.data.dataset import Dataset
from maskkit.engine.report import training_section
from maskkit.engine.run import Run, once
from maskkit.eval.numbers import Metric
from maskkit.eval.page import attempt
from maskkit.eval.rows import Row, rows_of
from maskkit.eval.task import TASKS
from maskkit.files import in_file_name, write_json
from maskkit.infer.torch_runtime import predictor
from maskkit.models.base import Model
from maskkit.prediction import Categories, Prediction

SAMPLES = 4
"""Validation images that are drawn at each evaluation."""

SAMPLE_SCORE = 0.3
"""Score threshold of these drawings, if the validation images yield none."""


def evaluation_due(done: int, total: int, period: float) -> bool:
    """Whether an evaluation follows step ``done``, where one is due every ``period`` steps (0: only at the end)."""
    return done == total or (period > 0 and int(done / period) > int((done - 1) / period))


def evaluate(
    run: Run, model: Model, info: dict[str, Any], config: RunConfig, categories: Categories, val_set: Dataset
) -> float:
    """Evaluate the model after ``info["step"]`` steps; the best weights so far are saved, and recorded in ``info``.

    Returns the decisive metric in the first process, 0 in the others.
    """
    step, decisive = info["step"], 0.0
    rows, samples = detect(run, model, config, categories, val_set)
    if run.main:
        task = TASKS[model.task]
        result = task.evaluate(rows, val_set)
        metrics, threshold = result.metrics, task.threshold(result, rows, val_set)
        folder, score = run.out / "samples" / f"{step:07}", SAMPLE_SCORE if threshold is None else threshold.score
        if failed := attempt(folder, lambda: draw(samples, folder, score)):
            run.log.note(failed)
        decisive = _decisive(metrics)
        if config.train.patience:  # by step, so that a repeated evaluation counts once
            info["evaluations"] = {**info.get("evaluations", {}), str(step): decisive}
        if info["best"] is None or decisive >= info["best"]:
            facts = {"step": step, "metrics": metrics} | ({} if threshold is None else {"score": threshold.score})
            write_json(run.out / "predictions.json", rows)
            save_model(run.out / "best.safetensors", model, config, categories, facts)
            info |= {"best": decisive, "metrics": metrics}
        run.log.evaluation(step, metrics if threshold is None else metrics | {"score": threshold.score})
    info["evaluated"] = step  # the last change: an evaluation that is interrupted before is repeated
    return decisive


def since_best(evaluations: Mapping[str, float]) -> tuple[int, int]:
    """The number of evaluations since the best one, and its step; ``evaluations`` maps steps to the decisive metric.

    Of equal ones the first is the best. 0 and 0 without evaluations.
    """
    if not evaluations:
        return 0, 0
    steps = sorted(map(int, evaluations))
    best = max(steps, key=lambda step: evaluations[str(step)])
    return len(steps) - 1 - steps.index(best), best


def ends_early(run: Run, info: Mapping[str, Any]) -> bool:
    """Whether the training ends early because of its evaluations; if so, a line says why."""
    patience = run.settings.patience
    if not patience or info["step"] != info["evaluated"] or info["step"] >= run.total:
        return False
    waited, best = once(run, lambda: since_best(info.get("evaluations", {})))  # only the first process has them
    if waited < patience:
        return False
    run.log.note(
        f"the training ends early, after step {info['step']} of {run.total}: in {waited} evaluations none was better "
        f"than that of step {best}; {run.flags}patience {patience} is how many it waits for"
    )
    return True


def keep_best(run: Run, info: dict[str, Any]) -> None:
    """For a resumed run: record in ``info`` the best weights in its folder, which may be newer than its state.

    If they are missing, the next evaluation writes new ones.
    """
    best = run.out / "best.safetensors"
    if not best.exists() or not (run.out / "predictions.json").exists():
        info["best"] = None
        info["evaluated"] = min(info["evaluated"], max(info["step"] - 1, 0))
        return
    metrics = read_header(best)["info"]["metrics"]
    decisive = _decisive(metrics)
    if info["best"] is None or decisive > info["best"]:
        info |= {"best": decisive, "metrics": metrics}


def _decisive(metrics: Mapping[str, Metric]) -> float:
    """The metric that decides which weights are best; None counts as 0."""
    return next(iter(metrics.values())) or 0.0


def detect(
    run: Run, model: Model, config: RunConfig, categories: Categories, val_set: Dataset
) -> tuple[list[Row], list[Prediction]]:
    """Result rows of all processes for ``val_set``, and the predictions of its first images."""
    part = val_set.subset(range(run.rank, len(val_set), run.world))
    found = predictor(model, config.input, categories)
    predictions = found.dataset(part, batch=config.train.batch, workers=config.train.workers)

    first: list[Prediction] = []

    def keep_first(i: int, prediction: Prediction) -> None:
        if i < SAMPLES and run.main:
            first.append(prediction)

    rows = rows_of(run.log.track(predictions, len(part), "evaluating"), keep_first)
    return gather_object(rows), first


def draw(predictions: Iterable[Prediction], folder: Path, score: float) -> None:
    """Save the images of predictions, with their objects of at least ``score`` drawn on them."""
    for prediction in predictions:
        found = prediction.instances
        if found is not None:
            prediction = replace(prediction, instances=found[found.scores >= score])
        prediction.save(folder / f"{in_file_name(prediction.meta.image_id)}_{Path(prediction.meta.path).stem}.jpg")


def write_report(run: Run, config: RunConfig, train_set: Dataset, val_set: Dataset) -> None:
    """Write ``report.html`` about the predictions of the best weights; if that fails, print a line that says why."""

    def write() -> None:
        task = TASKS[zoo.model_class(config.preset).task_of(config.model)]
        rows = json.loads((run.out / "predictions.json").read_bytes())
        info = read_header(run.out / "best.safetensors")["info"]
        facts = f"weights of step {info['step']} of {run.done}, trained on {len(train_set)} images"
        notes = [f"{facts} of {train_set.source}"]
        if "score" in info:
            notes.append(
                f"maskkit predict takes objects above {info['score']:.2f}, the score threshold of best F1 below"
            )
        notes.append(training_section(run, config, len(train_set)))
        task.write_report(run.out / "report.html", task.evaluate(rows, val_set), rows, val_set, config.preset, notes)

    if run.main and (failed := attempt(run.out / "report.html", write)):
        run.log.note(failed)
    run.accelerator.wait_for_everyone()
