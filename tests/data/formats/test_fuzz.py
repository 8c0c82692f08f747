"""A reader never stops at a bad record: mutated files of every format end in a data set or in one error."""

import contextlib
import warnings
from pathlib import Path

import pytest

from maskkit.data import check, open_dataset
from maskkit.data.formats import FORMATS
from maskkit.errors import DataError
from tests.data.formats.samples import SAMPLES, TOOLS
from tests.fuzz import outcomes
from tests.thorough import THOROUGH, of

MANY = of(2000)
LATER = {f.__name__ for f in TOOLS}
"""Formats of which many files are read in thorough runs alone."""
RUNS = [(name, 40) for name in SAMPLES] + [
    pytest.param(name, MANY, marks=pytest.mark.slow) for name in SAMPLES if THOROUGH or name not in LATER
]


def use(folder: Path) -> None:
    """Everything that a user does with a data set: it is opened, checked with its images, and loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and numpy's, of damaged images
        check.check(folder, True)
        data = open_dataset(folder)
        parts = [data]
        with contextlib.suppress(DataError):  # of label maps and tags, which are no objects
            parts.append(data.as_instances())
        for part in parts:
            for i in range(len(part)):
                part.load(i)
        semantic = data.as_semantic()
        for i in range(len(semantic)):
            semantic.load(i)


@pytest.mark.parametrize("name", SAMPLES)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    SAMPLES[name](tmp_path)
    report = check.check(tmp_path, True)
    assert not report.errors
    assert sum(map(len, report.datasets.values())) >= 2
    use(tmp_path)


def test_every_format_has_a_sample() -> None:
    assert {f.name for f in FORMATS} <= {name.partition("_")[0] for name in SAMPLES}


@pytest.mark.parametrize(("name", "count"), RUNS)
def test_mutated_files(name: str, count: int, tmp_path: Path) -> None:
    SAMPLES[name](tmp_path)
    refused, broken = outcomes(tmp_path, lambda: use(tmp_path), range(count))
    assert not broken, "\n".join([f"{len(broken)} of {count}", *broken[:20]])
    assert 0 < refused < count
