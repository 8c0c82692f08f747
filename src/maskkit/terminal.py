"""Everything that the package writes to a terminal goes through here: `say`, `complain`, and the consoles of rich.

File names, class names and versions come from files of any origin. What a terminal would obey (escape sequences,
control characters, marks that reverse the direction of text) is printed as a visible escape such as ``\\x1b``, and so
is what the terminal's encoding does not have.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 and C1 controls, DEL, separators of lines, marks of direction, lone surrogates; tab and newline are left
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str, lines: bool = True) -> str:
    """``text`` with visible escapes in place of all that a terminal would obey; without ``lines``, newlines too."""
    text = _OBEYED.sub(lambda found: ascii(found.group())[1:-1], text)
    return text if lines else text.replace("\n", "\\n")


def say(*parts: object, flush: bool = False) -> None:
    """Print to stdout, as `print` does."""
    print(*(printable(str(part)) for part in parts), flush=flush)


def complain(message: object) -> None:
    """Print one line about a fault to stderr, beginning with the name of the program."""
    print(f"maskkit: {printable(str(message), lines=False)}", file=sys.stderr, flush=True)


class Console(RichConsole):
    """rich's console, which prints texts of any origin safely: nothing in them is an escape, markup or an emoji."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """A text, escaped before its width is measured."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of text, escaped; rich's own control codes are left."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def prepare_streams() -> None:
    """Let stdout and stderr print any text, whatever their encoding, and take over warnings and messages of the log.

    For the command line, which owns its process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    log = logging.getLogger("maskkit")
    if not any(isinstance(handler, _Complaints) for handler in log.handlers):
        log.addHandler(_Complaints())
        log.propagate = False
    warnings.filterwarnings(
        "ignore", message="Image size .* exceeds limit", category=Warning
    )  # Pillow's; see `sources`


class _Complaints(logging.Handler):
    """Messages of the log as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())
