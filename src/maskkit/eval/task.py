"""What is done with the predictions of each task: one entry per task, and nothing else asks which task it is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from maskkit.data.dataset import Dataset
from maskkit.data.formats import coco_panoptic as panoptic_files
from maskkit.eval.instance import metric as coco
from maskkit.eval.instance import report
from maskkit.eval.instance.metric import CocoResult, ProposalResult, Row
from maskkit.eval.panoptic import metric as panoptic
from maskkit.eval.panoptic import report as panoptic_report
from maskkit.eval.semantic import metric as semantic
from maskkit.eval.semantic import report as semantic_report
from maskkit.files import write_json
from maskkit.prediction import Categories


class Result(Protocol):
    """What every evaluation gives."""

    @property
    def main(self) -> dict[str, float]:
        """The numbers that the task is judged by."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by which a run is followed; the first one decides which weights are best."""
        ...

    def table(self) -> Table:
        """The numbers in percent."""
        ...

    def save(self, path: Path) -> None:
        """Write all numbers as JSON."""
        ...


class WriteReport(Protocol):
    """Writes ``report.html`` for a result and the rows and data it was found for."""

    def __call__(
        self, path: Path, result: Any, rows: Sequence[Row], dataset: Dataset, title: str, notes: Iterable[str] = ()
    ) -> None:
        """``notes`` are lines of plain text under the title."""
        ...


class WriteResults(Protocol):
    """Writes rows as the files that other tools of the task read."""

    def __call__(
        self, folder: Path, rows: Sequence[Row], images: Iterable[Mapping[str, Any]], categories: Categories
    ) -> None:
        """``images`` are COCO's image records; ``predictions.json`` in ``folder`` has the rows in any case."""
        ...


def _write_rows(folder: Path, rows: Sequence[Row], images: Iterable[Mapping[str, Any]], categories: Categories) -> None:
    write_json(folder / "predictions.json", rows)


@dataclass(frozen=True)
class Task:
    """How a data set is seen, and how the rows of `Prediction.to_coco` are measured against it."""

    view: Callable[[Dataset], Dataset]
    """The data set as one of this task."""
    evaluate: Callable[[Sequence[Row], Dataset], Result]
    read_results: Callable[[Path, Dataset], list[dict[str, Any]]]
    write_report: WriteReport
    write_results: WriteResults = _write_rows


def _measure_objects(rows: Sequence[Row], dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.coco())


def _measure_boxes(rows: Sequence[Row], dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.coco(), kinds=("bbox",))


def _measure_proposals(rows: Sequence[Row], dataset: Dataset) -> ProposalResult:
    return ProposalResult(**vars(coco.evaluate(rows, dataset.coco(), max_dets=coco.PROPOSALS)))


def _read_objects(path: Path, dataset: Dataset) -> list[dict[str, Any]]:
    return coco.read_results(path, dataset.coco())


def _report_objects(
    path: Path, result: CocoResult, rows: Sequence[Row], dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    paths = {r.image_id: r.path for r in dataset.records}
    report.write_report(path, result, rows, dataset.coco(), paths, title, notes)


def _write_segments(
    folder: Path, rows: Sequence[Row], images: Iterable[Mapping[str, Any]], categories: Categories
) -> None:
    _write_rows(folder, rows, images, categories)
    panoptic_files.write_results(folder / "panoptic.json", rows, images, categories)


INSTANCE = Task(Dataset.as_instances, _measure_objects, _read_objects, _report_objects)
DETECTION = replace(INSTANCE, evaluate=_measure_boxes)
PROPOSALS = replace(INSTANCE, view=lambda d: d.as_instances().as_one_class(), evaluate=_measure_proposals)
SEMANTIC = Task(Dataset.as_semantic, semantic.evaluate, semantic.read_results, semantic_report.write_report)
PANOPTIC = Task(
    Dataset.as_panoptic,
    panoptic.evaluate,
    panoptic.read_results,
    panoptic_report.write_report,
    _write_segments,
)

TASKS: dict[str, Task] = {
    "instance": INSTANCE,
    "detection": DETECTION,
    "proposals": PROPOSALS,
    "semantic": SEMANTIC,
    "panoptic": PANOPTIC,
}
"""By the first of a model's ``tasks``."""
