"""Ids of a user's file: any whole number, any text.

A file's own id is kept as it stands there and comes back in every result file. To compare two ids use `key`: JSON
writers disagree on whether 7 is ``7``, ``7.0`` or ``"7"``.
"""

import math
import re
from typing import Any

from maskkit.prediction import ImageId

_DIGITS = 1000
"""More digits are a text: Python refuses to read numbers of more than 4,300."""


def whole(value: Any) -> int | None:
    """A whole number, also one with a decimal point, or written as JSON would write it in text; else None."""
    if type(value) is int:  # nearly always, and files have many
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        # not what int() accepts besides: "0001" and "12_3" are names, and other than "1" and "123"
        return int(value) if len(value) <= _DIGITS and re.fullmatch(r"0|-?[1-9][0-9]*", value, re.ASCII) else None
    if isinstance(value, int):
        return value
    return int(value) if math.isfinite(value) and value == int(value) else None


def key(value: Any) -> ImageId | None:
    """What an id is compared by: 7, 7.0 and "7" are one, "0001", "1_0" and "1" are three. None: this is no id."""
    number = whole(value)
    return value if number is None and isinstance(value, str) else number


def own(value: Any) -> ImageId | None:
    """The id as it is kept and given back: a text stays a text. None: this is no id."""
    return value if isinstance(value, str) else whole(value)
