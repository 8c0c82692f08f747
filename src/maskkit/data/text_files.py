"""Text files that people write: lists of images, names of classes, tables, xml and yaml, in any encoding.

Editors write UTF-8 with or without a byte order mark, and UTF-16 with one. Other bytes are never guessed: a line that
is not UTF-8 keeps its bytes as ``\\xe9`` and is reported, the other lines are read.
"""

import codecs
import csv
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import yaml
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from maskkit.data.rules import Warn
from maskkit.errors import DataError
from maskkit.files import read_bytes, require_file

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z][\w.-]*)["'][^>]*\?>""")
_NODES = 100_000
"""Largest number of values in a yaml file, counted as often as its aliases repeat them."""


def beginning_of(file: Path, limit: int) -> bytes:
    """The first ``limit`` bytes of a file. Raises `DataError`."""
    require_file(file)
    try:
        with open(file, "rb") as content:
            return content.read(limit)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def read_lines(file: Path, warn: Warn, limit: int | None = None) -> list[str]:
    """The lines of a text file, without line ends and byte order mark; with ``limit`` those in so many bytes.

    A line that is not UTF-8 is reported to ``warn`` and keeps the bytes as ``\\xe9``. Raises `DataError` when the file
    cannot be read or is no text.
    """
    read = read_bytes(file) if limit is None else beginning_of(file, limit)
    if len(read) == limit:
        read = read[: read.rfind(b"\n") + 1]  # the last line may be cut
    content, encoding = _marked(read)
    if encoding == "utf-8" and b"\0" in content:
        raise DataError(f"{file}: is not a text file; check the path")
    if encoding != "utf-8":
        return _LINE_END.split(content.decode(encoding, "replace"))
    lines = []
    for i, line in enumerate(re.split(rb"\r\n|\r|\n", content), 1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("utf-8", "backslashreplace"))
            warn(f"line {i} is not UTF-8 text and is read as {lines[-1]!r}; save the file as UTF-8")
    return lines if lines[-1] else lines[:-1]


def read_names(file: Path, warn: Warn) -> list[str]:
    """The names of a file with one a line, in which the number of a line is that of its class.

    Empty lines at the end do not count. Raises `DataError` for one before: without it all others had other numbers.
    """
    names = [line.strip() for line in read_lines(file, warn)]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"{file}: line {names.index('') + 1} is empty, and the number of a line is that of its class; name the "
            "class there, or remove the line if there is none"
        )
    return names


def read_table(file: Path, warn: Warn, limit: int | None = None) -> list[list[str]]:
    """The rows of a table, without empty ones; cells are separated by the commas, semicolons or tabs of its first line.

    With ``limit`` the rows are those in so many bytes. Raises `DataError` when the file cannot be read.
    """
    lines = [line for line in read_lines(file, warn, limit) if line.strip()]
    separator = max(",;\t", key=lines[0].count) if lines else ","
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as a table ({error}); save it as csv in UTF-8") from None
    return [row for row in rows if any(row)]


def read_text(file: Path) -> str:
    """The whole text of a file. Raises `DataError` when it cannot be read or is not UTF-8 (or UTF-16 with a mark)."""
    content, encoding = _marked(read_bytes(file))
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{file}: line {line} is not UTF-8 text; save the file as UTF-8") from None


def read_xml(file: Path) -> Element:
    """The root of an xml file, in the encoding that it declares.

    Expat knows few encodings and none of several bytes for a character, so the text is decoded before. Raises
    `DataError`, also for a DOCTYPE, by which xml can do harm.
    """
    content, encoding = _marked(read_bytes(file))
    declared = _DECLARED.match(content)
    if declared and encoding == "utf-8":
        encoding, content = declared[1].decode("ascii"), content[declared.end() :]
    try:
        text = _decode(content, _WIDER.get(encoding.lower(), encoding))
        return fromstring(_HEAD.sub("", text), forbid_dtd=True)
    except DefusedXmlException:
        raise DataError(f"{file}: has a DOCTYPE or entities, which are refused; remove them from the file") from None
    except UnicodeError:
        raise DataError(f"{file}: is not xml: its text is not {encoding}; save the file as UTF-8") from None
    except LookupError:
        raise DataError(f"{file}: is not xml: there is no encoding {encoding!r}; save the file as UTF-8") from None
    except (ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not xml ({error}); export the annotations again") from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping of a yaml file with every value as the text that is written there; empty for anything else.

    ``no`` and ``1.0`` are names of classes like others, not False and a number. Raises `DataError` for what is not
    yaml, and when aliases repeat so much that the values would fill the memory.
    """
    text = read_text(file)
    try:
        if _depth(text) > _DEEPEST:
            raise RecursionError  # the scanner of yaml would need seconds to find it
        loader = yaml.BaseLoader(text)  # it makes text, lists and mappings alone
        node = loader.get_single_node()
        if _size(node, {}) > _NODES:
            raise DataError(f"{file}: has more than {_NODES} values, or aliases that repeat so many; shorten the file")
        content = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        raise DataError(f"{file}: cannot be read as yaml ({' '.join(str(error).split())}); correct the file") from error
    except (RecursionError, ValueError):
        raise DataError(f"{file}: cannot be read as yaml (it is nested too deeply); correct the file") from None
    return content if isinstance(content, dict) else {}


_DEEPEST = 50
"""Brackets inside of each other in a yaml file."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_HEAD = re.compile(r"\s*<\?xml[^>]*\?>")
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin-1": "cp1252", "us-ascii": "utf-8"}
"""Encodings that hold what people write under another one's name."""


def _marked(content: bytes) -> tuple[bytes, str]:
    """The bytes without their byte order mark, and the encoding that it stands for (UTF-8 without one)."""
    found = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    return content.removeprefix(found[0]), found[1]


def _decode(content: bytes, encoding: str) -> str:
    """Raises ``UnicodeError``, and ``LookupError`` for a codec that is none of text."""
    return str(content, encoding)


def _depth(text: str) -> int:
    """How deep brackets are nested."""
    deepest = depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of values below a node, every alias counted as often as it occurs; a circle counts as endless."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _NODES + 1  # met again inside of itself
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
