"""Dataclasses: changed by the names of their fields, and made from plain JSON types, strictly.

No number is made of a text, no whole number of a fraction.
"""

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import cattrs
from cattrs.v import format_exception

T = TypeVar("T")


def change(config: T, **changes: Any) -> T:
    """``config`` with some fields changed; a mapping changes fields of a part: ``backbone={"name": "resnet18"}``.

    Raises ``TypeError`` for an unknown field, and for a part that is given neither as a mapping nor as its own type.
    """
    known = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise TypeError(f"{type(config).__name__} has no field {name!r}; it has {', '.join(known)}")
        part = known[name]
        if isinstance(value, Mapping):
            value = change(part, **value)
        elif is_dataclass(part) and not is_dataclass(value):
            raise TypeError(
                f"{name} is a {type(part).__name__}: change its fields by a mapping, {name}={{FIELD: VALUE}}, "
                f"not by {value!r}"
            )
        values[name] = value
    return replace(config, **values)  # type: ignore[type-var]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}


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
