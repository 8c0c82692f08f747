"""Everything that depends on the task, one entry per task. No other module tests for a task."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from maskkit.data import find_splits, open_dataset, open_truth
from maskkit.data.dataset import Dataset
from maskkit.eval.instance import files as instance_files
from maskkit.eval.instance import match, report
from maskkit.eval.instance import metric as coco
from maskkit.eval.instance.metric import CocoResult, ProposalResult
from maskkit.eval.numbers import Metric, Threshold
from maskkit.eval.panoptic import files as panoptic_files
from maskkit.eval.panoptic import metric as panoptic
from maskkit.eval.panoptic import report as panoptic_report
from maskkit.eval.rows import Row, Unchecked
from maskkit.eval.semantic import files as semantic_files
from maskkit.eval.semantic import metric as semantic
from maskkit.eval.semantic import report as semantic_report
from maskkit.prediction import Categories


class Result(Protocol):
    """The result of an evaluation."""

    @property
    def main(self) -> dict[str, Metric]:
        """The main metrics of the task."""
        ...

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics shown during training; the first one decides which weights are best."""
        ...

    def table(self) -> Table:
        """The metrics, between 0 and 1."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All metrics as JSON types; null where there is nothing to measure."""
        ...

    def save(self, path: Path) -> None:
        """Write `to_json` to a file."""
        ...


class WriteReport(Protocol):
    """Writes ``report.html`` for a result, with its rows and data."""

    def __call__(
        self, path: Path, result: Any, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
    ) -> None:
        """``notes`` are lines of plain text under the title."""
        ...


class WriteResults(Protocol):
    """Writes rows as the results files of the task."""

    def __call__(
        self, folder: Path, rows: Unchecked, images: Iterable[Mapping[str, Any]], categories: Categories
    ) -> None:
        """``images`` are COCO's image records; the rows are always written to ``predictions.json`` in ``folder``."""
        ...


@dataclass(frozen=True)
class Task:
    """A task: its view of data sets, its supervision, and how rows are evaluated, read and written."""

    name: str
    noun: str
    """Plural noun for the rows of a prediction."""
    supervision: frozenset[str]
    """Kinds of labels on which models of the task can train."""
    view: Callable[[Dataset], Dataset]
    """The data set as this task uses it. Raises `DataError` when it does not have the labels."""
    evaluate: Callable[[Unchecked, Dataset], Result]
    """Raises `DataError` for rows that do not belong to the data set."""
    read_results: Callable[[Path, Dataset], list[Row]]
    """Rows of a results file of any tool. Raises `DataError`."""
    write_results: WriteResults
    write_report: WriteReport
    data_file: Callable[[str | Path, str | None], Path] = lambda path, split: Path(path)
    """What to open for a split of the data set at a path, where the task wants one of several files."""
    threshold: Callable[[Any, Unchecked, Dataset], Threshold | None] = lambda result, rows, dataset: None
    """The score threshold with the highest F1 for a result with its rows and data; None: nothing has a score, or no row
    is right."""

    def open(
        self,
        data: str | Path,
        prefer: str,
        split: str | None = None,
        images: bool = True,
        allow_outside: bool = False,
    ) -> Dataset:
        """The ``split`` of the data set at ``data``; by default the split ``prefer`` if it has one, else all of it.

        Without ``images`` none of them must be there (`maskkit.data.open_truth`). Raises `DataError`.
        """
        split = split or (prefer if prefer in find_splits(data) else None)
        read = open_dataset if images else open_truth
        return read(self.data_file(data, split), split, allow_outside)


def _measure_objects(rows: Unchecked, dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.truth())


def _measure_boxes(rows: Unchecked, dataset: Dataset) -> CocoResult:
    return coco.evaluate(rows, dataset.truth(), kinds=("bbox",))


def _measure_proposals(rows: Unchecked, dataset: Dataset) -> ProposalResult:
    return ProposalResult(**vars(coco.evaluate(rows, dataset.truth(), max_dets=coco.PROPOSALS)))


def _best_threshold(result: CocoResult, rows: Unchecked, dataset: Dataset) -> Threshold | None:
    best = match.best_threshold(list(match.scenes(rows, dataset.truth(), result.kind)))
    return best if best.f1 > 0 else None


def _read_objects(path: Path, dataset: Dataset) -> list[Row]:
    return instance_files.read_results(path, dataset.truth())


def _report_objects(
    path: Path, result: CocoResult, rows: Unchecked, dataset: Dataset, title: str, notes: Iterable[str] = ()
) -> None:
    paths = {r.image_id: r.path for r in dataset.records}
    report.write_report(path, result, rows, dataset.truth(), paths, title, notes)


INSTANCE = Task(
    "instance",
    "objects",
    frozenset({"masks", "boxes"}),
    Dataset.as_instances,
    _measure_objects,
    _read_objects,
    instance_files.write_results,
    _report_objects,
    threshold=_best_threshold,
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
    panoptic_files.data_file,
)

TASKS: dict[str, Task] = {t.name: t for t in (INSTANCE, DETECTION, PROPOSALS, SEMANTIC, PANOPTIC)}
"""Tasks by name."""
