"""One conversion: its folder and its counts; images are checked, named and copied here."""

import errno
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from maskkit.data.dataset import Dataset
from maskkit.data.images import SUFFIXES, image_size, opened
from maskkit.data.records import Annotation, Record, extent, extent_of_rle
from maskkit.data.rules import NEAR, Problem, size_mismatch
from maskkit.errors import DataError
from maskkit.prediction import ImageId

Splits = Mapping[str, Dataset]
"""Data sets by the names of their splits; a data set without splits has an empty name."""

_KEPT = ("images", "objects", "crowds left out")
"""Counts that are reported even if they are 0."""
_BOXED = ("coco", "voc")
"""Formats in which an object has a box and a mask."""


@dataclass
class Job:
    """A conversion into the folder ``root``, which becomes the result when it is complete."""

    root: Path
    to: str
    progress: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    problems: set[Problem] = field(default_factory=set)

    def result(self) -> dict[str, int]:
        """The counts; those of what is lost or changed only if they are not 0."""
        extra = {name: count for name, count in self.counts.items() if count and name not in _KEPT}
        return {name: self.counts[name] for name in _KEPT} | extra | {"problems": len(self.problems)}

    def records(self, split: str, dataset: Dataset) -> Iterator[Record]:
        """The records whose image has the stated size; the caller reports other errors with `fail`."""
        title = f"{split or 'all'}: images"
        for record in track(dataset.records, title) if self.progress else dataset.records:
            try:
                if (size := image_size(record.path)) != record.size:
                    raise DataError(size_mismatch(record.size, size))
            except DataError as error:
                self.fail(record, error)
                continue
            if self.to not in _BOXED:
                self.counts["boxes that became those around their masks"] += sum(
                    _has_own_box(a, record.size) for a in record.annotations
                )
            yield record

    def fail(self, record: Record, error: DataError) -> None:
        """Count an image that is left out."""
        message = str(error).removeprefix(f"{record.path}: ")
        self.problems.add(Problem("error", str(record.path), f"image {record.image_id}", message))

    def number(self, ids: Mapping[str, ImageId]) -> None:
        """Count the ids of a split that a format without ids loses: it numbers images from 1 in the order of names."""
        order = enumerate(sorted(ids), 1)
        self.counts["ids of images that became others"] += sum(ids[name] != number for number, name in order)

    def copier(self, folder: Path, spaces: bool = True) -> "Copier":
        """Copies images into ``folder``, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        return Copier(self, folder, spaces)


@dataclass
class Copier:
    """Copies images into one folder, with names that differ in more than suffix and case."""

    job: Job
    folder: Path
    spaces: bool
    """Whether names may have spaces."""
    taken: set[str] = field(default_factory=set)

    def __call__(self, record: Record) -> str:
        """The name of the copy. Raises `DataError` when the image cannot be copied."""
        stem = self._clean(record.path.stem)
        if stem.lower() in self.taken:
            stem = next(s for n in range(2, len(self.taken) + 3) if (s := f"{stem}_{n}").lower() not in self.taken)
        self.taken.add(stem.lower())
        suffix = record.path.suffix
        name = stem + (suffix if suffix.lower() in SUFFIXES else _suffix(record.path))
        try:
            copied = Path(shutil.copyfile(record.path, self.folder / name)).stat().st_size
            if copied != (size := record.path.stat().st_size):
                raise OSError(errno.EIO, f"{copied} of {size} bytes could be read")
        except OSError as error:
            where = f"{record.path}: cannot be copied to {self.folder.parent}"
            raise DataError(
                f"{where} ({error.strerror or error}); check its permissions, and the free space"
            ) from error
        self.job.counts["images"] += 1
        return name

    def _clean(self, stem: str) -> str:
        """A name that every reader accepts: not hidden, valid text, without control characters."""
        stem = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", stem).strip(" .") or "image"
        return stem if self.spaces else re.sub(r"\s", "_", stem)


def _has_own_box(annotation: Annotation, size: tuple[int, int]) -> bool:
    """Whether the box of an object with a mask differs by more than `NEAR` from the one around the mask."""
    box, shape = annotation.box, annotation.segmentation
    if box is None or not isinstance(shape, Sequence | dict):
        return False
    around = extent_of_rle(shape) if isinstance(shape, dict) else extent(shape)
    return max(abs(one - other) for one, other in zip(box, around, strict=True)) > NEAR


def _suffix(path: Path) -> str:
    """The usual suffix for the format of the file."""
    with opened(path) as image:
        found = (image.format or "png").lower()
    return "." + {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "tiff": "tif"}.get(found, found)
