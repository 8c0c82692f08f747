"""The page that `make support` writes: only tests that passed fill it."""

from pathlib import Path

import pytest

from maskkit.errors import MaskkitError
from tests.models import test_fcos
from tests.support import BF16, BOXES, COLUMNS, EXPORT, INT8, LEARNS, OPEN_SIZE, every, page, read

CASE = '<testcase classname="tests.models.test_fcos.TestFcos" name="{}">{}</testcase>'
PROPERTIES = '<properties><property name="support" value="{}"/></properties>'


def report(path: Path, **inside: str) -> Path:
    """A JUnit report of one method, with something inside some of its cases."""
    names = dict.fromkeys(column.test for column in COLUMNS)
    path.write_text("<testsuites>" + "".join(CASE.format(n, inside.get(n, "")) for n in names) + "</testsuites>")
    return path


def test_a_cell_says_yes_where_its_test_passed_and_a_dash_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = {EXPORT: PROPERTIES.format("ONNX"), INT8: PROPERTIES.format("int8"), BOXES: "<skipped/>"}
    found = read(report(tmp_path / "a.xml", **inside)).values()
    with pytest.raises(MaskkitError, match="TestFcos has no OpenVINO and does not say why"):
        page(found)
    monkeypatch.setattr(test_fcos.TestFcos, "no_openvino", "it cannot")
    text = page(found)
    head, _, row = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|"))
    title, preset, tests, *cells, weights = row
    assert (title, preset) == ("FCOS", f"`{test_fcos.TestFcos.preset}`")
    assert tests == "[`TestFcos`](../tests/models/test_fcos.py)"
    yes = "[yes](../tests/models/test_fcos.py)"
    assert dict(zip(head[3:-1], cells, strict=True)) == {
        column.title: yes if column.title in ("train", "boxes", "bf16", "ONNX", "int8") else "-" for column in COLUMNS
    }
    assert weights.endswith("(../tests/zoo/test_sources.py)")
    assert f"- **No OpenVINO**: it cannot: {preset}.\n" in text
    assert all(f"**: {column.says} (`{column.test}`)" in text for column in COLUMNS)


def test_a_test_that_failed_or_was_not_run_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(MaskkitError, match=f"{BF16} failed"):
        read(report(tmp_path / "a.xml", **{BF16: "<failure/>"}))
    for test in (EXPORT, OPEN_SIZE, LEARNS):
        with pytest.raises(MaskkitError, match=rf"no report has .*TestFcos.{test}"):
            read(report(tmp_path / "a.xml", **{test: "<skipped/>"}))
    assert {"tests.models.test_fcos.TestFcos", "tests.models.test_eps.TestEps"} < every()
