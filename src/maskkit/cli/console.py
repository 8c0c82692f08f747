"""What the verbs share: the console, progress bars, and the exit for wrong usage."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from maskkit.terminal import Console, complain

if TYPE_CHECKING:
    from rich.progress import Progress


def wrong_usage(message: str) -> NoReturn:
    """Print what is wrong with the command line and exit with code 2."""
    complain(f"{message}; see --help")
    raise SystemExit(2)


def progress() -> Progress:
    """A progress bar on stderr, shown only on a terminal."""
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


def stdout() -> Console:
    """The console for results; 160 columns wide when it is not a terminal, so that tables do not wrap."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=160)
