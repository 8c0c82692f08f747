"""The range of each number in a configuration, stated once, in the field's type: ``flip: Share = 0.5``.

`check_ranges` compares the values of a config and of its parts with what their types say.
"""

import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from maskkit.errors import MaskkitError


@dataclass(frozen=True)
class Range:
    """Which numbers make sense."""

    low: float
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high or math.isinf(self.high) else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.without_low else f"at least {self.low:g}"
        if math.isinf(self.high):
            return low
        if self.without_low == self.without_high:
            return f"between {self.low:g} and {self.high:g}" + (", without these two" if self.without_low else "")
        return f"{low} and " + (f"below {self.high:g}" if self.without_high else f"at most {self.high:g}")


Count = Annotated[int, Range(1)]
"""At least one."""
Whole = Annotated[int, Range(0)]
"""Zero or more."""
Batch = Annotated[int, Range(1, 65_536)]
"""A number of images that are processed together."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Pixels = Annotated[int, Range(1, 65_536)]
"""A side of an image."""
Workers = Annotated[int, Range(0, 1024)]
"""A number of processes or threads."""
Positive = Annotated[float, Range(0, without_low=True)]
"""More than zero."""
Weight = Annotated[float, Range(0)]
"""Zero or more."""
Factor = Annotated[float, Range(1)]
"""One or more."""
Share = Annotated[float, Range(0, 1)]
"""From zero to one."""
Decay = Annotated[float, Range(0, 1, without_high=True)]
"""From zero to below one."""
FeatureStride = Annotated[int, Range(-64, 64)]
"""A stride of a backbone's features; below zero it is what enters that stride, the output of its first block."""
Part = Annotated[float, Range(0, 1, without_low=True, without_high=True)]
"""Between zero and one, without these two."""
Colour = Annotated[float, Range(0, 255)]


def check_ranges(config: Any, flags: str = "--") -> None:
    """Raise `MaskkitError` for the first number in a config dataclass, or in a part of it, that is not in its range.

    ``flags`` is what stands before the names of the fields: ``--train.`` for options of the command line.
    """
    for name, value, reason in misfits(config):
        raise MaskkitError(f"{flags}{name.replace('_', '-')} {_shown(value)}: {reason}")


def misfits(config: Any) -> Iterator[tuple[str, Any, str]]:
    """Dotted name, value and reason of each field of a config dataclass whose numbers are not in their ranges."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from ((f"{field.name}.{name}", inner, reason) for name, inner, reason in misfits(value))
        else:
            yield from ((field.name, value, reason) for reason in misfit(value, hints[field.name]))


def misfit(value: Any, hint: Any) -> Iterator[str]:
    """Why a value does not fit its type, as far as numbers are concerned: nothing or one reason."""
    yield from islice(_reasons(value, hint), 1)


def _reasons(value: Any, hint: Any) -> Iterator[str]:
    """Why a value does not fit its type, as far as numbers are concerned."""
    if get_origin(hint) is Annotated:
        kind, *metadata = get_args(hint)
        for found in metadata:
            if isinstance(found, Range):
                yield from _misfit(value, kind, found)
    elif get_origin(hint) in (Union, types.UnionType):
        if value is not None:
            for choice in get_args(hint):
                if choice is not type(None):
                    yield from _reasons(value, choice)
    elif get_origin(hint) is tuple:
        inner = get_args(hint)
        if not isinstance(value, list | tuple):
            yield "must be several values"
        elif inner[-1] is not ... and len(value) != len(inner):
            yield f"must be {len(inner)} values"
        else:
            for i, item in enumerate(value):
                yield from _reasons(item, inner[0] if inner[-1] is ... else inner[i])


def _misfit(value: Any, kind: type, allowed: Range) -> Iterator[str]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        yield "must be a number"
    elif kind is int and not isinstance(value, int):
        yield "must be a whole number"
    elif value not in allowed:
        yield f"must be {allowed}"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
