"""Numbers of the command line that make no sense are wrong usage, in every verb."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from maskkit.cli.console import wrong_usage
from maskkit.errors import MaskkitError
from maskkit.ranges import check_ranges, misfit


def checked(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb, which leaves with code 2 when a number is not in the range that its type states."""
    hints = get_type_hints(verb, include_extras=True)

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> int:
        for name, value in inspect.signature(verb).bind(*args, **kwargs).arguments.items():
            if is_dataclass(value):
                refuse_ranges(value, "--" if _is_unnamed(hints[name]) else f"--{name}.")
            for reason in misfit(value, hints[name]):
                wrong_usage(f"--{name.replace('_', '-')} {value}: {reason}")
        return verb(*args, **kwargs)

    return run


def refuse_ranges(config: Any, flags: str) -> None:
    """Leave with code 2 when a number in ``config`` is not in its range."""
    try:
        check_ranges(config, flags)
    except MaskkitError as error:
        wrong_usage(str(error))


def _is_unnamed(hint: Any) -> bool:
    """Whether the fields of a config are options without a common prefix."""
    return get_origin(hint) is Annotated and any(getattr(mark, "name", None) == "" for mark in get_args(hint)[1:])
