"""What reaches the terminal: no escape of a foreign file, and any text in any encoding."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.table import Table
from rich.text import Text

from maskkit import cli
from maskkit.terminal import Console, complain, printable, say

HOSTILE = "\x1b[2J\x1b]0;PWN\x07cat\x1b]8;;http://evil\x07x\x9b31m\u202egpj.exe\r[red]b[/blue] :cat: \ud800"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text):
    shown = printable(text, lines=False)
    assert not OBEYED.search(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    shown.encode()


def test_other_text_is_left_as_it_is():
    text = "Straße 日本語 café \t\n عربى 👩‍👧 naïve"
    assert printable(text) == text
    assert printable("\x1b[31m") == "\\x1b[31m"


@pytest.mark.parametrize("wrap", [str, Text])
def test_consoles_print_hostile_text_as_text(wrap):
    file = io.StringIO()
    console = Console(file=file, width=200)
    table = Table("class", title=wrap(HOSTILE))
    table.add_row(wrap(HOSTILE))
    console.print(wrap(HOSTILE))
    console.print(table)
    said = file.getvalue()
    assert not OBEYED.search(said)
    assert "\\x1b[2J" in said
    assert "[red]b[/blue] :cat:" in said


def test_colours_of_our_own_are_left():
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print(Text("bad \x1b[2J", style="red"))
    assert file.getvalue() == "\x1b[31mbad \\x1b[2J\x1b[0m\n"


def test_say_and_complain(capsys):
    say(HOSTILE, 3)
    complain(f"a\n{HOSTILE}")
    said = capsys.readouterr()
    assert not OBEYED.search(said.out + said.err)
    assert said.err.startswith("maskkit: a\\n\\x1b")
    assert said.err.count("\n") == 1


@pytest.fixture
def hostile(tmp_path):
    """A data set whose names are escapes."""
    names = ["p1.png", "no\x1b[31mfile\x1b]52;c;aGk=\x07.png"]
    Image.new("RGB", (40, 30)).save(tmp_path / "p1.png")
    truth = {
        "images": [{"id": i, "file_name": n, "width": 40, "height": 30} for i, n in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 18, 18], "area": 324, "iscrowd": 0,
             "segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]]} for i in (1, 2)
        ],
        "categories": [{"id": 1, "name": HOSTILE[:-1]}],
    }  # fmt: skip
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(truth))
    return path


def test_no_escape_of_a_data_set_reaches_the_terminal(hostile, tmp_path, capsys):
    assert cli.main(["check", str(hostile)]) == 1
    assert cli.main(["convert", str(hostile), str(tmp_path / "out"), "--to", "coco"]) in (0, 1)
    assert cli.main(["predict", str(tmp_path / "no\x1b[31m\nfile.png"), "--out", str(tmp_path / "found")]) == 1
    said = capsys.readouterr()
    assert "\\x1b[2J" in said.out
    assert "\\x1b[31m\\nfile.png" in said.err
    assert not OBEYED.search(said.out + said.err)


@pytest.mark.parametrize("locale", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_terminals_without_unicode(locale, hostile):
    truth = json.loads(hostile.read_text())
    hostile.write_text(json.dumps(truth | {"categories": [{"id": 1, "name": "日本 — café"}]}))
    environment = {**os.environ, "LC_ALL": "C", **locale}
    code = "import sys; from maskkit.cli import main; sys.exit(main(['models', '--small']) or main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "check", hostile], env=environment, capture_output=True)
    assert done.returncode == 1, done.stderr
    assert b"yolact" in done.stdout
    assert b"caf\\xe9" in done.stdout
    assert done.stdout.isascii()
    assert b"Traceback" not in done.stderr
