"""What the verbs share: options about downloads, and the check of the range of every number."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from maskkit.checkpoints.cache import accept_licence
from maskkit.cli.console import wrong_usage
from maskkit.errors import MaskkitError
from maskkit.ranges import check_ranges, misfit


@dataclass(frozen=True)
class Fetch:
    """What may be downloaded."""

    offline: bool = False
    """Download nothing; HF_HUB_OFFLINE=1 does the same. Earlier downloads are in ~/.cache/maskkit, or in the folder
    that MASKKIT_HOME names."""
    accept_licence: str | None = None
    """Accept a licence of published weights that restricts their use, by its name, for this and later commands."""

    def apply(self) -> None:
        """Apply the options; to be called before anything is downloaded."""
        if self.offline:
            os.environ["MASKKIT_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
        if self.accept_licence is not None:
            accept_licence(self.accept_licence)


def checked(verb: Callable[..., int]) -> Callable[..., int]:
    """The verb, which exits with code 2 when a number is outside of the range that its type states."""
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
    """Exit with code 2 when a number in ``config`` is outside of its range."""
    try:
        check_ranges(config, flags)
    except MaskkitError as error:
        wrong_usage(str(error))


def _is_unnamed(hint: Any) -> bool:
    """Whether the options for the fields of a config have no common prefix."""
    return get_origin(hint) is Annotated and any(getattr(mark, "name", None) == "" for mark in get_args(hint)[1:])
