"""Checks a data set: lists all its problems at once and summarises its contents."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.progress import track
from rich.text import Text

from maskkit.data import find_splits, open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.images import image_size, read_pixels
from maskkit.data.records import Record, Segment
from maskkit.data.rules import Problem, Problems, counted, size_mismatch
from maskkit.data.summary import Pixels, Summary, doubts, summarise, tables
from maskkit.errors import DataError
from maskkit.files import digest
from maskkit.terminal import Console

MANY = 5000
"""Of larger data sets only the headers of the images are read, unless ``decode`` is given."""

LABEL_MAPS = 200
"""Number of label maps that are read in any case."""

T = TypeVar("T")


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
        for table in tables(self.source, {n: d.format for n, d in self.datasets.items()}, self.summaries):
            console.print(table)
        if not self.decoded:
            console.print(f"More than {MANY} images: only their headers were read, so damaged pixels are not found.")
        for level, found, colour in (("error", self.errors, "red"), ("warning", self.warnings, "yellow")):
            for problem in found[:limit]:
                console.print(Text(str(problem), style=colour), soft_wrap=True)
            if limit is not None and len(found) > limit:
                console.print(f"... and {counted(len(found) - limit, f'more {level}')}")
        verdict = f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}"
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
    usable, summaries = {}, {}
    for name, dataset in datasets.items():
        seen = _look(dataset.records, decode, f"{name}: images" if progress else None)
        for record, (fault, _) in seen.items():
            if fault:
                problems.error(record.path, f"image {record.image_id}", fault)
        usable[name] = dataset.subset(i for i, record in enumerate(dataset.records) if not seen[record][0])
        summaries[name] = summarise(usable[name], {r: seen[r][1] for r in usable[name].records})
        for level, message in doubts(usable[name], summaries[name]):
            only_measured = level == "error" and name in ("val", "test")
            (problems.warn if level == "warning" or only_measured else problems.error)(dataset.source, name, message)
    _note_copies(usable, problems)
    return CheckReport(source, usable, summaries, problems, decode)


Seen = tuple[str | None, Pixels | None]
"""The fault of an image, if it has one, and the pixels of its label map, where it was read."""


def _look(records: list[Record], decode: bool, title: str | None) -> dict[Record, Seen]:
    """What was found in the files of each image. Without ``decode`` only a part of the label maps is read."""
    step = 1 if decode else max(1, len(records) // LABEL_MAPS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = pool.map(lambda item: _look_at(item[1], decode, item[0] % step == 0), enumerate(records))
        watched = track(seen, title, total=len(records)) if title else seen
        return dict(zip(records, watched, strict=True))


def _look_at(record: Record, decode: bool, labels: bool) -> Seen:
    pixels = None
    try:
        size = read_pixels(record.path).shape[:2] if decode else image_size(record.path)
        if size != record.size:
            return size_mismatch(record.size, (size[0], size[1])), None
        if labels and record.semantic is not None:
            pixels = record.semantic.counts(record.size)
        if decode:
            for segment in (a.segmentation for a in record.annotations if isinstance(a.segmentation, Segment)):
                segment.rle(record.size)
    except DataError as error:
        return str(error), None
    return None, pixels


def _note_copies(datasets: Mapping[str, Dataset], problems: Problems) -> None:
    """Warn of images with the same bytes, within a split and between splits."""
    places = [(name, r.path) for name, dataset in datasets.items() for r in dataset.records]
    for same in _groups(places, lambda place: place[1].stat().st_size):  # only files of one size can be equal
        for copies in _groups(same, lambda place: digest(place[1], "blake2b")):
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
