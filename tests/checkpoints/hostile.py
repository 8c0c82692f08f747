"""Checkpoints that are damaged in every way, in their description and in their bytes, and what judges them."""

import copy
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from maskkit.checkpoints.checkpoint import Checkpoint, load_model
from maskkit.errors import MaskkitError

Damage = Callable[[dict[str, Any]], Any]


class Parts:
    """A checkpoint taken apart: the JSON at its start as an object, our description in it, and the tensors' bytes."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        self.listing = json.loads(content[8 : 8 + length])
        self.header = json.loads(self.listing["__metadata__"]["maskkit"])
        self.data = content[8 + length :]

    def whole(self) -> bytes:
        """The file, with the description as it is now."""
        self.listing["__metadata__"]["maskkit"] = json.dumps(self.header)
        return file_of(json.dumps(self.listing).encode(), self.data)

    def with_header(self, damage: Damage) -> bytes:
        """The file with a changed description; what ``damage`` returns takes its place, text as it is."""
        parts = copy.deepcopy(self)
        changed = damage(parts.header)
        parts.listing["__metadata__"]["maskkit"] = (
            changed if isinstance(changed, str) else json.dumps(parts.header if changed is None else changed)
        )
        return file_of(json.dumps(parts.listing).encode(), parts.data)

    def with_listing(self, damage: Damage) -> bytes:
        """The file with a changed JSON at its start; bytes that ``damage`` returns take its place as they are."""
        parts = copy.deepcopy(self)
        changed = damage(parts.listing)
        if not isinstance(changed, bytes):
            changed = json.dumps(parts.listing if changed is None else changed).encode()
        return file_of(changed, parts.data)


def file_of(text: bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file from its parts, whose length may lie."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def nested(depth: int) -> str:
    """JSON in JSON in JSON."""
    return "[" * depth + "]" * depth


def put(place: str, value: Any) -> Damage:
    """Sets the field at a dotted place."""

    def damage(header: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for part in path:
            header = header[part]
        header[last] = value

    return damage


def drop(place: str) -> Damage:
    """Removes the field at a dotted place."""

    def damage(header: dict[str, Any]) -> None:
        *path, last = place.split(".")
        for part in path:
            header = header[part]
        del header[last]

    return damage


VALUES = (None, True, "text", "", "../../etc/passwd", -1, 0, 3, 0.5, 10**9, 2**70, 1e308, -math.inf, math.nan)
VALUES += ([], {}, [[]], [1, 2], ["a", None], {"name": "x"}, "hf-hub:a/b", [10**9] * 3, "x" * 100_000, [0] * 2000)
"""What any field may be set to."""


def places(value: Any, name: str = "") -> Iterator[str]:
    """Dotted names of everything in nested dicts."""
    if name:
        yield name
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "info":
                yield from places(inner, f"{name}.{key}" if name else key)


def mutate(content: bytes, rng: random.Random, within: int) -> bytes:
    """``content`` with one to four random changes in its first ``within`` bytes, or cut off."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(max(1, min(within, len(found))))
        kind = rng.randrange(7)
        if kind == 0:
            found[i : i + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            found[i : i + rng.randint(1, 40)] = b""
        elif kind == 2:
            found[i:i] = rng.choice(
                [b"{", b"}", b"[", b"]", b'"', b",", b"null", b"-1", b"1e999", b"NaN", b"99999999999"]
            )
        elif kind == 3:
            found[i:i] = found[i : i + rng.randint(1, 80)]
        elif kind == 4:  # digits become other digits, which JSON does not notice
            digits = [j for j in range(8, min(within, len(found))) if 48 <= found[j] <= 57]
            if digits:
                found[rng.choice(digits)] = rng.randrange(48, 58)
        elif kind == 5:  # the length stays true, as if a program had written the file
            length = int.from_bytes(found[:8], "little")
            text = bytes(found[8 : 8 + length]).replace(
                b":", rng.choice([b":-", b":1", b":[", b": "]), rng.randrange(9)
            )
            found[8 : 8 + length] = text
            found[:8] = len(text).to_bytes(8, "little")
        elif rng.random() < 0.2:
            del found[rng.randrange(len(found)) :]
    return bytes(found)


def judge(path: Path, most_seconds: float = 1.0, most_bytes: int = 300 << 20) -> Checkpoint | str:
    """The checkpoint, or the one line that names the file; fails on anything else, and on waste of time or memory."""
    before, began = _memory("VmRSS", reset=True), time.process_time()
    found: Checkpoint | str
    try:
        found = load_model(path)
    except MaskkitError as error:
        found = str(error)
        assert str(path) in found
        assert found.isprintable(), "one line, no control characters"
        assert len(found) < 1500
    seconds, peak = time.process_time() - began, _memory("VmHWM") - before
    assert seconds < most_seconds, f"{seconds:.1f} s: {found}"
    assert peak < most_bytes, f"{peak >> 20} MiB: {found}"
    return found


def _memory(field: str, reset: bool = False) -> int:
    """Memory of this process in bytes, where the system tells: now, or its peak since the last reset."""
    if reset and os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def tensors_of(path: Path) -> dict[str, Any]:
    """All tensors of a file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safe_open is no dict)
