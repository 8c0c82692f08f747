"""Evaluation during a training: when it is due, what is kept of it, and the report at the end."""

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
"""Objects with a lower score are not drawn there, where the validation images do not give a threshold."""


def evaluation_due(done: int, total: int, period: float) -> bool:
    """Whether an evaluation follows step ``done``, where one is due every ``period`` steps (0: only at the end)."""
    return done == total or (period > 0 and int(done / period) > int((done - 1) / period))


def evaluate(
    run: Run, model: Model, info: dict[str, Any], config: RunConfig, categories: Categories, val_set: Dataset
) -> float:
    """Measure the model after ``info["step"]`` steps; the best weights so far are saved, and noted in ``info``.

    Returns the decisive metric in the first process, 0 in others.
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
        if config.train.patience:  # by their steps: one that is repeated counts once
            info["evaluations"] = {**info.get("evaluations", {}), str(step): decisive}
        if info["best"] is None or decisive >= info["best"]:
            facts = {"step": step, "metrics": metrics} | ({} if threshold is None else {"score": threshold.score})
            write_json(run.out / "predictions.json", rows)
            save_model(run.out / "best.safetensors", model, config, categories, facts)
            info |= {"best": decisive, "metrics": metrics}
        run.log.evaluation(step, metrics if threshold is None else metrics | {"score": threshold.score})
    info["evaluated"] = step  # the last change: what is stopped before is done again
    return decisive


def since_best(evaluations: Mapping[str, float]) -> tuple[int, int]:
    """How many evaluations followed the best one, and its step; ``evaluations`` maps steps to the decisive metric.

    Of equal ones the first is the best. 0 and 0 where there is none.
    """
    if not evaluations:
        return 0, 0
    steps = sorted(map(int, evaluations))
    best = max(steps, key=lambda step: evaluations[str(step)])
    return len(steps) - 1 - steps.index(best), best


def ends_early(run: Run, info: Mapping[str, Any]) -> bool:
    """Whether the evaluations so far end the training before its last step, which a line says."""
    patience = run.settings.patience
    if not patience or info["step"] != info["evaluated"] or info["step"] >= run.total:
        return False
    waited, best = once(run, lambda: since_best(info.get("evaluations", {})))  # which only the first process has
    if waited < patience:
        return False
    run.log.note(
        f"the training ends early, after step {info['step']} of {run.total}: in {waited} evaluations none was better "
        f"than that of step {best}; {run.flags}patience {patience} is how many it waits for"
    )
    return True


def keep_best(run: Run, info: dict[str, Any]) -> None:
    """A run that continues: note in ``info`` the best weights in its folder, which may be newer than its state.

    Where they are not there any more, the next evaluation writes new ones.
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
    """The metric that decides which weights are best; what cannot be measured counts as 0."""
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
    """Save the images of predictions with their objects of at least ``score`` drawn over them."""
    for prediction in predictions:
        found = prediction.instances
        if found is not None:
            prediction = replace(prediction, instances=found[found.scores >= score])
        prediction.save(folder / f"{in_file_name(prediction.meta.image_id)}_{Path(prediction.meta.path).stem}.jpg")


def write_report(run: Run, config: RunConfig, train_set: Dataset, val_set: Dataset) -> None:
    """Write ``report.html`` about the predictions of the best weights, or a line about why that failed."""

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
