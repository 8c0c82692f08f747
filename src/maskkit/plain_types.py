"""Dataclasses from plain JSON types, strictly: no number is made of a text, no whole number of a fraction."""

import sys

import cattrs
from cattrs.v import format_exception


def strict_converter() -> cattrs.Converter:
    """A converter that refuses unknown fields, and values that are not of the declared type."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind, hook in ((int, _whole), (float, _number), (bool, _flag), (str, _text)):
        converter.register_structure_hook(kind, hook)
    return converter


def reasons(error: Exception) -> str:
    """The first three things that are wrong, in one line."""
    return "; ".join(reason[:200] for reason in cattrs.transform_error(error, format_exception=_reason)[:3])


def _whole(value: object, _: object) -> int:
    if type(value) is not int and not (isinstance(value, float) and value.is_integer()):
        raise ValueError(f"{_short(value)} is not a whole number")
    return int(value)


def _number(value: object, _: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{_short(value)} is not a number")
    return float(value)


def _flag(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_short(value)} is neither true nor false")
    return value


def _text(value: object, _: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_short(value)} is not a text")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _reason(error: BaseException, kind: type | None) -> str:
    return str(error) if type(error) is ValueError else format_exception(error, kind)
