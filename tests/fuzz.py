"""Mutated copies of small valid files, and the rule that every reader keeps for them.

A mutation follows from a number, so that one that fails can be made again alone. `outcomes` reads many of them and
collects what is neither a result nor one `DataError`: another exception, more than `SECONDS` of time, or more than
`MEGABYTES` of memory.
"""

import json
import os
import re
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskkit.errors import DataError
from tests.data.written import places, spoil

SECONDS = 2.0
MEGABYTES = 500

NUMBERS = (
    "",
    "0",
    "-1",
    "-0",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "1_0",
    "\u0663",
    "0x10",
    "1,5",
    "9" * 30,
    "1e-320",
    "2.5",
)
WORDS = (
    "\ufeff",
    "\u0000",
    "../../../../etc/passwd",
    "/etc/passwd",
    "~",
    "true",
    "null",
    "None",
    "a b",
    " ",
    "\t",
    "\x1b[2J",
)
MARKS = (
    "<",
    ">",
    "&amp;",
    "&x;",
    "<!DOCTYPE a [<!ENTITY x 'y'>]>",
    "]]>",
    "{",
    "}",
    "[",
    "]",
    '"',
    "'",
    ",",
    ":",
    "- ",
    "\r\n",
)
DEEP = ("[" * 3000, "<a>" * 3000, "{a: " * 300, "- " * 3000, '{"a":' * 3000)
BOMB = ("&a [*a, *a]", "a: &a [x, x]\nb: [*a, *a]", "!!python/object/apply:os.system [id]", "!!binary x", "? [a]\n: b")
TOKENS = (*NUMBERS, *WORDS, *MARKS, *DEEP, *BOMB)

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, 2**70, -(2**70), 0.5, 1e308, -1e308),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "1",
        "01",
        "1_0",
        "nan",
        "cat",
        "\ud800",
        "\u0000",
        "a" * 5000,
    ),
    *(
        "../../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "..",
        "images",
        [],
        {},
        [[]],
        [[[]]],
        [None],
        {"": None},
    ),
    *([0] * 7, [1.5, "2", None], {"size": [12, 16], "counts": [2**70]}, {"size": [12, 16], "counts": "\u00e9"}),
    *({"size": [2**40, 2**40], "counts": [2**80]}, {"size": [0, 0], "counts": []}, {"a": {"b": {"c": [{}]}}}),
)

Mutation = Callable[[bytes, np.random.Generator], bytes]


def of_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes are changed, left out, written twice, or put in."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(0, len(data) + 1))
        stop = min(len(data), start + int(rng.integers(1, 2 + len(data) // 4)))
        kind = rng.integers(0, 6)
        if kind == 0:
            del data[start:stop]
        elif kind == 1:
            data[start:start] = data[start:stop]
        elif kind == 2:
            data[start:start] = rng.bytes(int(rng.integers(1, 12)))
        elif kind == 3:
            data[start:start] = rng.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\xa8\xbf", b"\n", b"\r"]).tobytes()
        elif kind == 4:
            del data[start:]
        elif start < len(data):
            data[start] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


def of_tokens(content: bytes, rng: np.random.Generator) -> bytes:
    """Some words, numbers or marks of a text are other ones."""
    parts = re.split(r"(\w+|[^\w\s])", content.decode("utf-8", "replace"))
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(parts)))
        token = TOKENS[int(rng.integers(0, len(TOKENS)))]
        parts[place] = token if rng.random() < 0.7 else parts[int(rng.integers(0, len(parts)))]
    encoding = ("utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig", "gb2312")[int(rng.integers(0, 7))]
    return "".join(parts).encode(encoding, "replace")


def of_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Some values of a JSON text are other ones, are missing, or have other names."""
    value = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        ways = places(value)
        if not ways:
            break
        way = ways[int(rng.integers(0, len(ways)))]
        kind = rng.random()
        if kind < 0.7:
            value = spoil(value, way, VALUES[int(rng.integers(0, len(VALUES)))])
        else:
            value = _moved(value, way, kind < 0.85, rng)
    return json.dumps(value).encode()


def _moved(value: Any, way: tuple[Any, ...], gone: bool, rng: np.random.Generator) -> Any:
    """A copy in which one value is ``gone``, or stands in the place of another."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in way[:-1]:
        inner = inner[key]
    if gone:
        del inner[way[-1]]
        return copy
    ways = places(copy)
    other = copy
    for key in ways[int(rng.integers(0, len(ways)))]:
        other = other[key]
    return spoil(copy, way, other)


def mutation(name: str, rng: np.random.Generator) -> Mutation:
    """A way to change a file that is called ``name``."""
    if name.endswith((".png", ".jpg")):
        return of_bytes
    ways = [of_bytes, of_tokens] + [of_json] * 3 * name.endswith(".json")
    return ways[int(rng.integers(0, len(ways)))]


@contextmanager
def mutated(folder: Path, number: int) -> Iterator[str]:
    """Inside, some files of ``folder`` are mutated; gives the names of what was done. It is as before afterwards."""
    rng = np.random.default_rng(number)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    texts = [p for p in files if p.suffix not in (".png", ".jpg")]
    done, before = [], {}
    try:
        for _ in range(int(rng.integers(1, 3))):
            group = texts if texts and rng.random() < 0.75 else files
            path = group[int(rng.integers(0, len(group)))]
            if path in before:
                continue
            before[path] = path.read_bytes()
            kind = rng.random()
            if kind < 0.95:
                way = mutation(path.name, rng)
                path.write_bytes(way(before[path], rng))
                done.append(f"{way.__name__} {path.name}")
            else:
                what = ("gone", "folder", "pipe", "empty", "loop", "endless")[int(rng.integers(0, 6))]
                _replace(path, what)
                done.append(f"{what} {path.name}")
        yield ", ".join(done)
    finally:
        for path, content in before.items():
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(content)


def _replace(path: Path, what: str) -> None:
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    elif what == "loop":
        path.symlink_to(path.name)
    elif what == "endless":
        path.symlink_to("/dev/zero")


class TooLong(BaseException):
    """A reader did not come back; no handler for errors may catch it."""


@contextmanager
def bounded(seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Raises `TooLong` after so many seconds of work, or ten times as many by the clock, which is busy with others too;
    ``MemoryError`` beyond so much more memory."""

    def late(*_: object) -> None:
        raise TooLong

    status = Path("/proc/self/status").read_text()
    used = 1024 * int(re.findall(r"VmData:\s*(\d+)", status)[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    handlers = [signal.signal(number, late) for _, number, _ in clocks]
    resource.setrlimit(resource.RLIMIT_DATA, (used + megabytes * 2**20, hard))
    for timer, _, limit in clocks:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(clocks, handlers, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def outcomes(folder: Path, use: Callable[[], object], numbers: range) -> tuple[int, list[str]]:
    """How many mutations were refused, and those that broke the rule, with the end of their traceback."""
    refused, broken = 0, []
    for number in numbers:
        with mutated(folder, number) as done:
            try:
                with bounded():
                    use()
            except DataError as error:
                refused += 1
                text = str(error)
                if len(text) > 4000:
                    broken.append(f"{number} ({done}): a message of {len(text)} characters")
            except (Exception, TooLong) as error:
                place = traceback.extract_tb(error.__traceback__)[-4:]
                where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(place))
                broken.append(f"{number} ({done}): {type(error).__name__} {str(error)[:100]!r} at {where}")
    return refused, broken
