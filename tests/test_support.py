"""The page that `make support` writes: only tests that passed fill it."""

from pathlib import Path

import pytest

from maskkit.errors import MaskkitError
from tests.models import test_fcos
from tests.support import TESTS, page

CASE = '<testcase classname="tests.models.test_fcos.TestFcos" name="{}">{}</testcase>'
EXPORTED = "test_exported_files_give_what_pytorch_gives_and_decode_without_torch"
PROPERTIES = '<properties><property name="support" value="ONNX"/></properties>'


def report(path: Path, **inside: str) -> Path:
    """A JUnit report of one method, with something inside some of its cases."""
    names = [*TESTS.values(), EXPORTED]
    path.write_text("<testsuites>" + "".join(CASE.format(n, inside.get(n, "")) for n in names) + "</testsuites>")
    return path


def test_a_cell_says_yes_where_its_test_passed(tmp_path: Path) -> None:
    inside = {EXPORTED: PROPERTIES, "test_boxes_alone_teach_masks": "<skipped/>"}
    row = page(report(tmp_path / "a.xml", **inside)).splitlines()[-1]
    preset = test_fcos.TestFcos.preset
    assert row == f"| [FCOS](../tests/models/test_fcos.py) | `{preset}` | yes | - | yes | yes | - | - |"


def test_a_test_that_failed_or_was_not_run_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(MaskkitError, match="test_bf16_loss_is_near_fp32 failed"):
        page(report(tmp_path / "a.xml", test_bf16_loss_is_near_fp32="<failure/>"))
    with pytest.raises(MaskkitError, match=r"exported files of .*TestFcos were not tried"):
        page(report(tmp_path / "a.xml", **{EXPORTED: "<skipped/>"}))
