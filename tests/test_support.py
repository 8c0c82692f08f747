"""The page that `make support` writes: only tests that passed fill it."""

from pathlib import Path

import pytest

from maskkit.errors import MaskkitError
from tests.models import test_fcos
from tests.support import BF16, BOXES, COLUMNS, EXPORT, INT8, OPEN_SIZE, page

CASE = '<testcase classname="tests.models.test_fcos.TestFcos" name="{}">{}</testcase>'
PROPERTIES = '<properties><property name="support" value="{}"/></properties>'


def report(path: Path, **inside: str) -> Path:
    """A JUnit report of one method, with something inside some of its cases."""
    names = dict.fromkeys(column.test for column in COLUMNS)
    path.write_text("<testsuites>" + "".join(CASE.format(n, inside.get(n, "")) for n in names) + "</testsuites>")
    return path


def test_a_cell_says_yes_where_its_test_passed_and_leads_to_it(tmp_path: Path) -> None:
    inside = {EXPORT: PROPERTIES.format("ONNX"), INT8: PROPERTIES.format("int8"), BOXES: "<skipped/>"}
    text = page(report(tmp_path / "a.xml", **inside))
    head, _, row = (line.strip("| ").split(" | ") for line in text.splitlines()[-3:])
    title, preset, *cells, weights = row
    assert (title, preset) == ("[FCOS](../tests/models/test_fcos.py)", f"`{test_fcos.TestFcos.preset}`")
    said = {name.partition("]")[0][1:]: cell for name, cell in zip(head[2:-1], cells, strict=True)}
    yes = "[yes](../tests/models/test_fcos.py)"
    assert said == {
        column.title: yes if column.title in ("train", "boxes", "bf16", "ONNX", "int8") else "-" for column in COLUMNS
    }
    assert head[2] == "[train](../tests/models/conformance.py)"
    assert weights.endswith("(../tests/zoo/test_sources.py)")


def test_a_test_that_failed_or_was_not_run_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(MaskkitError, match=f"{BF16} failed"):
        page(report(tmp_path / "a.xml", **{BF16: "<failure/>"}))
    for test in (EXPORT, OPEN_SIZE):
        with pytest.raises(MaskkitError, match=r"exported files of .*TestFcos were not tried"):
            page(report(tmp_path / "a.xml", **{test: "<skipped/>"}))
