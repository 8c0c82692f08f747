"""Checks a data set: lists all its problems at once and summarises its contents."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from rich.progress import track
from rich.table import Table
from rich.text import Text

from maskkit.data import find_splits, open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.images import image_size, read_pixels
from maskkit.data.records import Record, Segment, area_of
from maskkit.data.rules import Problem, Problems, size_mismatch
from maskkit.errors import DataError
from maskkit.terminal import Console

MANY = 5000
"""Data sets with more images are checked by their headers alone unless ``decode`` is given."""

_SMALL = 32 * 32  # COCO's border between small and medium objects, in pixels

T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """The contents of one split. Crowds are counted separately, not as objects."""

    images: int
    empty: int
    """Images without an object."""
    objects: int
    box_only: int
    """Objects without a known mask."""
    crowds: int
    small: int
    """Objects smaller than 32 x 32 pixels."""
    classes: dict[str, int]
    """Objects of every class."""
    sizes: Counter[tuple[int, int]]
    """Images of every (H, W)."""
    per_image: list[int]
    """Objects of every image."""


@dataclass(frozen=True)
class CheckReport:
    """The result of a check; ``datasets`` has the usable records of each split."""

    source: str
    datasets: dict[str, Dataset]
    summaries: dict[str, Summary]
    problems: list[Problem]
    decoded: bool
    """Whether the pixels of every image were read, not only its header."""

    @property
    def errors(self) -> list[Problem]:
        """Problems that left something out."""
        return [p for p in self.problems if p.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Doubtful things that were kept."""
        return [p for p in self.problems if p.level == "warning"]

    def print(self, console: Console | None = None, limit: int | None = None) -> None:
        """Write the report to the console: all problems, or no more than ``limit`` errors and as many warnings."""
        console = console or Console()
        console.print(_contents_table(self))
        console.print(_class_table(self.summaries))
        if not self.decoded:
            console.print(f"More than {MANY} images: only their headers were read, damaged pixels stay undiscovered.")
        for level, found, colour in (("error", self.errors, "red"), ("warning", self.warnings, "yellow")):
            for problem in found[:limit]:
                console.print(Text(str(problem), style=colour), soft_wrap=True)
            if limit is not None and len(found) > limit:
                console.print(f"... and {len(found) - limit} more {level}s")
        verdict = f"{len(self.errors)} errors, {len(self.warnings)} warnings"
        console.print(Text(f"{self.source}: {verdict}", style="bold red" if self.errors else "bold green"))


def check(
    path: str | Path, decode: bool | None = None, progress: bool = False, allow_outside: bool = False
) -> CheckReport:
    """Check every split of the data set at ``path``: records, images, contents, leaks between splits.

    ``decode`` reads the pixels of every image; by default only up to `MANY` images. ``progress`` shows a bar;
    ``allow_outside`` is as in `open_dataset`.
    Raises `DataError` only when nothing is recognised or an annotation file as a whole cannot be read.
    """
    names = find_splits(path) or ["all"]
    return check_datasets(
        {name: open_dataset(path, name, allow_outside) for name in names}, str(path), decode, progress
    )


def check_datasets(
    datasets: Mapping[str, Dataset], source: str = "", decode: bool | None = None, progress: bool = False
) -> CheckReport:
    """The same for open data sets, by the names of their splits."""
    # two parts of one file have the same problems
    problems = Problems(dict.fromkeys(p for dataset in datasets.values() for p in dataset.problems))
    decode = sum(map(len, datasets.values())) <= MANY if decode is None else decode
    usable = {}
    for name, dataset in datasets.items():
        found = _faults(dataset.records, decode, f"{name}: images" if progress else None)
        for record, fault in found.items():
            problems.error(record.path, f"image {record.image_id}", fault)
        usable[name] = dataset.subset(i for i, record in enumerate(dataset.records) if record not in found)
    summaries = {name: _summary(dataset) for name, dataset in usable.items()}
    for name, summary in summaries.items():
        mapped = any(r.semantic is not None for r in usable[name].records)  # its classes may be in label maps
        if not mapped and (absent := [c for c, n in summary.classes.items() if n == 0]):
            problems.warn(
                usable[name].source, name, f"no object of {', '.join(absent)}; the class cannot be trained or evaluated"
            )
    _note_copies(usable, problems)
    return CheckReport(source, usable, summaries, problems, decode)


def _faults(records: list[Record], decode: bool, title: str | None) -> dict[Record, str]:
    """The fault of each image of ``records`` that has one."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        faults = pool.map(lambda r: _fault(r, decode), records)
        watched = track(faults, title, total=len(records)) if title else faults
        return {record: fault for record, fault in zip(records, watched, strict=True) if fault}


def _fault(record: Record, decode: bool) -> str | None:
    try:
        size = read_pixels(record.path).shape[:2] if decode else image_size(record.path)
        if decode and size == record.size:
            if record.semantic is not None:
                record.semantic.read(record.size)
            for segment in (a.segmentation for a in record.annotations if isinstance(a.segmentation, Segment)):
                segment.rle(record.size)
    except DataError as error:
        return str(error)
    return None if size == record.size else size_mismatch(record.size, (size[0], size[1]))


def _summary(dataset: Dataset) -> Summary:
    pairs = [(r, a) for r in dataset.records for a in r.annotations if not a.crowd]
    counts = Counter(a.label for _, a in pairs)
    per_image = [sum(not a.crowd for a in r.annotations) for r in dataset.records]
    return Summary(
        images=len(dataset),
        empty=per_image.count(0),
        objects=len(pairs),
        box_only=sum(a.segmentation is None for _, a in pairs),
        crowds=sum(a.crowd for r in dataset.records for a in r.annotations),
        small=sum(area_of(a, r.size) < _SMALL for r, a in pairs),
        classes={name: counts[i] for i, name in enumerate(dataset.categories.titles)},
        sizes=Counter(r.size for r in dataset.records),
        per_image=per_image,
    )


def _note_copies(datasets: Mapping[str, Dataset], problems: Problems) -> None:
    """Warn of images with the same bytes, within a split and between splits."""
    places = [(name, r.path) for name, dataset in datasets.items() for r in dataset.records]
    for same in _groups(places, lambda place: place[1].stat().st_size):  # only files of one size can be equal
        for copies in _groups(same, lambda place: _digest(place[1])):
            (first, original), *others = copies
            for name, path in others:
                if name == first:
                    problems.warn(path, name, f"the same image as {original}; one of them is enough")
                else:
                    problems.warn(
                        path, name, f"the same image as {original} of {first}: results on {name} will be too optimistic"
                    )


def _groups(items: Iterable[T], key) -> Iterator[list[T]]:
    """Groups of two or more items with the same key."""
    groups: dict[object, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return (group for group in groups.values() if len(group) > 1)


def _digest(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _contents_table(report: CheckReport) -> Table:
    table = Table(title=Text(report.source), title_justify="left")
    table.add_column("")
    rows: dict[str, list[str]] = defaultdict(list)
    for name, s in report.summaries.items():
        table.add_column(name, justify="right")
        heights, widths = zip(*s.sizes, strict=True) if s.sizes else ((0,), (0,))
        rows["format"].append(report.datasets[name].format)
        rows["images"].append(str(s.images))
        rows["  without objects"].append(str(s.empty))
        rows["  width"].append(f"{min(widths)} to {max(widths)}")
        rows["  height"].append(f"{min(heights)} to {max(heights)}")
        rows["objects"].append(str(s.objects))
        rows["  per image, median and most"].append(f"{median(s.per_image or [0]):g}, {max(s.per_image, default=0)}")
        rows["  smaller than 32 x 32"].append(f"{s.small / max(s.objects, 1):.0%}")
        rows["  with a box only"].append(str(s.box_only))
        rows["crowds"].append(str(s.crowds))
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table


def _class_table(summaries: Mapping[str, Summary]) -> Table:
    table = Table(title="objects per class", title_justify="left")
    table.add_column("class")
    for name in summaries:
        table.add_column(name, justify="right")
    for label in dict.fromkeys(c for s in summaries.values() for c in s.classes):
        table.add_row(Text(label), *(str(s.classes.get(label, 0)) for s in summaries.values()))
    return table
