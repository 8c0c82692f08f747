"""Fonts for the labels of overlays: the first one that has every character of a text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
_WIDE = ("cjk", "noto", "unifont", "wqy", "droidsansfallback", "ipa", "nanum", "pingfang", "msyh", "arial")
"""Parts of the names of fonts that have many characters: these are looked into first."""
_LOOKED_INTO = 200
"""Largest number of the system's fonts that are searched for a character."""


def fitted(text: str, size: int) -> tuple[Font, str]:
    """A font of ``size`` pixels and the text to draw with it: characters that no font has become visible escapes."""
    path, shown = _find(text)
    return _load(path, size), shown


@lru_cache(1024)
def _find(text: str) -> tuple[str | None, str]:
    """The file of a font with all characters of ``text``, None for Pillow's own, and the text as it can be drawn."""
    if text.isascii():
        return None, text
    needed = set(map(ord, text))
    for path in _files():
        if needed <= _characters(path):
            return path, text
    path = next(_files(), None)
    known = _characters(path) if path is not None else frozenset(range(128))
    return path, "".join(c if ord(c) in known else ascii(c).strip("'\"") for c in text)


@lru_cache(64)
def _load(path: str | None, size: int) -> Font:
    return ImageFont.truetype(path, size) if path is not None else ImageFont.load_default(size)


def _files() -> Iterator[str]:
    """The font of matplotlib, then those of the system."""
    import matplotlib

    own = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if own.is_file():
        yield str(own)
    yield from _of_system()


@cache
def _of_system() -> tuple[str, ...]:
    found = [
        os.path.join(folder, name)
        for root in _FOLDERS
        for folder, _, names in os.walk(os.path.expanduser(root))
        for name in names
        if name.lower().endswith((".ttf", ".otf", ".ttc"))
    ]
    found.sort(key=lambda p: (not any(part in os.path.basename(p).lower() for part in _WIDE), p))
    return tuple(found[:_LOOKED_INTO])


@cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font; none where the file cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
