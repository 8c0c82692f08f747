"""Everything that depends on the task, one entry per task. No other module asks which task it is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from maskkit.data.dataset import Dataset
from maskkit.eval.instance import files as instance_files
from maskkit.eval.instance import metric as coco
from maskkit.eval.instance import report
from maskkit.eval.instance.metric import CocoResult, ProposalResult
from maskkit.eval.panoptic import files as panoptic_files
from maskkit.eval.panoptic import metric as panoptic
from maskkit.eval.panoptic import report as panoptic_report
from maskkit.eval.rows import Row, Unchecked
from maskkit.eval.semantic import files as semantic_files
from maskkit.eval.semantic import metric as semantic
from maskkit.eval.semantic import report as semantic_report
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
        self, path: Path, result: Any, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
    ) -> None:
        """``notes`` are lines of plain text under the title."""
        ...


class WriteResults(Protocol):
    """Writes rows as the files that other tools of the task read."""

    def __call__(
        self, folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories
    ) -> None:
        """``images`` are COCO's image records; ``predictions.json`` in ``folder`` has the rows in any case."""
        ...


@dataclass(frozen=True)
class Task:
    """How data sets are seen, what models learn from, and how rows are counted, measured, read and written."""

    name: str
    noun: str
    """What one row of a prediction is, in the plural."""
    supervision: frozenset[str]
    """Kinds of labels that models of the task may learn from."""
    view: Callable[[Dataset], Dataset]
    """The data set as one of this task. Raises `DataError` where it cannot be one."""
    evaluate: Callable[[Unchecked, Dataset], Result]
    """Raises `DataError` for rows that do not belong to the data set."""
    read_results: Callable[[Path, Dataset], list[Row]]
    """Rows of a file that any tool has written. Raises `DataError`."""
    write_results: WriteResults
    write_report: WriteReport


def _measure_objects(rows: Unchecked, dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.coco())


def _measure_boxes(rows: Unchecked, dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.coco(), kinds=("bbox",))


def _measure_proposals(rows: Unchecked, dataset: Dataset) -> ProposalResult:
    return ProposalResult(**vars(coco.evaluate(rows, dataset.coco(), max_dets=coco.PROPOSALS)))


def _read_objects(path: Path, dataset: Dataset) -> list[Row]:
    return instance_files.read_results(path, dataset.coco())


def _report_objects(
    path: Path, result: CocoResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    paths = {r.image_id: r.path for r in dataset.records}
    report.write_report(path, result, rows, dataset.coco(), paths, title, notes)


INSTANCE = Task(
    "instance",
    "objects",
    frozenset({"masks", "boxes"}),
    Dataset.as_instances,
    _measure_objects,
    _read_objects,
    instance_files.write_results,
    _report_objects,
)
DETECTION = replace(INSTANCE, name="detection", supervision=frozenset({"boxes"}), evaluate=_measure_boxes)
PROPOSALS = replace(
    INSTANCE,
    name="proposals",
    supervision=frozenset({"masks"}),
    view=lambda d: d.as_instances().as_one_class(),
    evaluate=_measure_proposals,
)
SEMANTIC = Task(
    "semantic",
    "regions",
    frozenset({"label_map", "tags"}),
    Dataset.as_semantic,
    semantic.evaluate,
    semantic_files.read_results,
    semantic_files.write_results,
    semantic_report.write_report,
)
PANOPTIC = Task(
    "panoptic",
    "segments",
    frozenset({"masks"}),
    Dataset.as_panoptic,
    panoptic.evaluate,
    panoptic_files.read_results,
    panoptic_files.write_results,
    panoptic_report.write_report,
)

TASKS: dict[str, Task] = {t.name: t for t in (INSTANCE, DETECTION, PROPOSALS, SEMANTIC, PANOPTIC)}
"""By the name that a model's config declares."""
