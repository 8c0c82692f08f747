"""What the verbs share: the console, progress bars, and the way out of wrong usage."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress


def wrong_usage(message: str) -> NoReturn:
    """Say what is wrong with the command line and leave with exit code 2."""
    print(f"maskkit: {message}; see --help", file=sys.stderr)
    raise SystemExit(2)


def progress() -> Progress:
    """A progress bar on stderr, where there is a terminal to draw it on."""
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


def stdout() -> Console:
    """The console for results; wide where lines go into a file, so that tables stay whole."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=160)
