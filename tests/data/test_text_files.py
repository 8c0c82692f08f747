"""Text in any encoding, tables, xml and yaml within limits."""

import random
import time
from pathlib import Path

import pytest

from maskkit.data.text_files import read_lines, read_names, read_table, read_text, read_xml, read_yaml
from maskkit.errors import DataError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_marked_and_plain_text(tmp_path: Path, encoding: str, end: str) -> None:
    file, warnings = tmp_path / "names.txt", []
    file.write_bytes(end.join(["left gate 1", "", "车"]).encode(encoding))
    assert read_lines(file, warnings.append) == ["left gate 1", "", "车"]
    assert warnings == []


def test_a_line_in_another_encoding_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    file, warnings = tmp_path / "names.txt", []
    file.write_bytes(b"dog\ncaf\xe9\n" + "größe\n".encode())
    assert read_lines(file, warnings.append) == ["dog", "caf\\xe9", "größe"]
    assert ["line 2 is not UTF-8" in w for w in warnings] == [True]
    with pytest.raises(DataError, match=r"names\.txt: line 2 is not UTF-8"):
        read_text(file)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(DataError, match="not a text file"):
        read_lines(tmp_path / "names.txt", print)
    with pytest.raises(DataError, match="folder"):
        read_lines(tmp_path, print)
    with pytest.raises(DataError, match="no such file"):
        read_lines(tmp_path / "gone.txt", print)


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for separator in (",", ";", "\t"):
        file.write_text(f'a{separator} b\n\n"1{separator}2"{separator}3\n')
        assert read_table(file, print) == [["a", "b"], [f"1{separator}2", "3"]]
    file.write_text("a,b\n" * 10)
    assert len(read_table(file, print, limit=10)) == 2  # the third row is cut
    file.write_text('"' + "x" * 200_000)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_table(file, print)


@pytest.mark.parametrize(
    "encoding", ["gb2312", "GBK", "gb18030", "Big5", "Shift_JIS", "EUC-KR", "utf-8", "windows-1251"]
)
def test_xml_in_the_encoding_that_it_declares(tmp_path: Path, encoding: str) -> None:
    text = {"windows-1251": "ж", "Shift_JIS": "車", "EUC-KR": "차"}.get(encoding, "車" if encoding == "Big5" else "猫")
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n<a>{text}</a>'.encode(encoding))
    assert read_xml(tmp_path / "a.xml").text == text


@pytest.mark.parametrize("codec", ["base64", "zlib", "rot13", "hex", "no-such", "unicode_escape"])
def test_codecs_that_are_none_of_text_are_refused(tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.xml").write_bytes(f'<?xml version="1.0" encoding="{codec}"?><a>\\ud800</a>'.encode())
    with pytest.raises(DataError, match=r"a\.xml: is not xml"):
        read_xml(tmp_path / "a.xml")


def test_yaml_values_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeffnames: [no, 1.0, 007, 2024-01-01, ~]\nval:\n")
    assert read_yaml(tmp_path / "a.yaml") == {"names": ["no", "1.0", "007", "2024-01-01", "~"], "val": ""}
    (tmp_path / "a.yaml").write_text("- a\n")
    assert read_yaml(tmp_path / "a.yaml") == {}


def bomb(levels: int, width: int) -> str:
    """Lists of aliases of lists: ``width ** levels`` values."""
    rows = [f"a0: &a0 [{', '.join('x' * width)}]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join([*rows, f"names: *a{levels - 1}"])


@pytest.mark.parametrize(
    "text",
    [
        bomb(9, 10),
        bomb(30, 2),
        bomb(3, 60),
        "names: &a [*a]",
        "names: &a {b: *a}",
        "names: " + "[" * 5000,
        "names: " + "{a: " * 500,
        "- " * 3000,
        "a: &a {<<: [*a, *a]}",
        "? [a]\n: b",
        "x: \0",
    ],
    ids=lambda text: text[:12].replace("\0", ""),
)
def test_yaml_that_would_fill_memory_or_stack_ends_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    begun = time.process_time()
    with pytest.raises(DataError, match=r"a\.yaml: (has more than|cannot be read as yaml)"):
        read_yaml(tmp_path / "a.yaml")
    assert time.process_time() - begun < 1


def test_aliases_that_are_meant_well_work(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: &here images/train\nval: *here\nnames: [a]\n")
    assert read_yaml(tmp_path / "a.yaml")["val"] == "images/train"


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_yaml, "names:\n  0: cat\n  1: &d dog\ntrain: [a, b]\nval: {x: *d}\n"),
        (read_xml, '<?xml version="1.0" encoding="utf-8"?><a><b>1</b><c d="e"/></a>'),
        (read_text, "a\nb\n"),
    ],
)
def test_whatever_the_bytes_are_it_is_content_or_a_clear_error(tmp_path: Path, read, text: str) -> None:
    rng, file = random.Random(0), tmp_path / "spoiled"
    for _ in range(150):
        content = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.choice([rng.randrange(256), *b"[]{}&*<>!?%\0\xff\n"])
        file.write_bytes(content)
        try:
            read(file)
        except DataError as error:
            assert str(error).startswith(str(file))  # noqa: PT017


def test_names_keep_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\ufeffcat\r\n big dog \r\n\r\n \n", encoding="utf-8")
    assert read_names(file, print) == ["cat", "big dog"]
    file.write_text("\ncat\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 1 is empty"):
        read_names(file, print)
