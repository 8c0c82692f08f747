"""Every number that a user can set has a range, and is refused outside of it by one line with its name."""

import importlib
import math
import pkgutil
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskkit
from maskkit import api, cli, config, zoo
from maskkit.errors import MaskkitError
from maskkit.ranges import Range, check_ranges, misfit, misfits


def configs() -> list[type]:
    """All config dataclasses of the package: those of a run, and of each method and its parts."""
    found = {c for c in vars(config).values() if isinstance(c, type) and is_dataclass(c)}
    for package in ("models", "nn"):
        folder = importlib.import_module(f"maskkit.{package}").__path__
        for module in pkgutil.walk_packages(folder, f"maskkit.{package}."):
            here = vars(importlib.import_module(module.name))
            found |= {c for n, c in here.items() if n.endswith("Config") and isinstance(c, type) and is_dataclass(c)}
    return sorted(found, key=lambda c: c.__qualname__)


def leaves(hint: Any) -> Iterator[tuple[type, Range | None]]:
    """The numbers in a type, with their ranges."""
    if get_origin(hint) is Annotated:
        kind, *marks = get_args(hint)
        yield kind, next((mark for mark in marks if isinstance(mark, Range)), None)
    elif get_origin(hint) in (tuple, Union, types.UnionType):
        for inner in get_args(hint):
            yield from leaves(inner)
    elif hint in (int, float):
        yield hint, None


def numbers(kind: type) -> dict[str, Any]:
    """Field to type, of the fields that hold numbers."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind) if any(leaves(hints[f.name]))}


CONFIGS = configs()


def test_there_are_configs() -> None:
    assert {"RunConfig", "TrainConfig", "Pretraining", "YolactConfig", "RegionConfig"} <= {c.__name__ for c in CONFIGS}
    assert sum(len(numbers(c)) for c in CONFIGS) > 250


def test_every_number_states_its_range() -> None:
    assert not [
        f"{kind.__name__}.{name}"
        for kind in CONFIGS
        for name, hint in numbers(kind).items()
        for _, allowed in leaves(hint)
        if allowed is None
    ]


def bad(hint: Any, value: float) -> Any:
    """The value in the form of the type: several ones for a tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        return bad(next(h for h in get_args(hint) if h is not type(None)), value)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return tuple(bad(i, value) for i in inner if i is not ...)
    return value


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda c: c.__name__)
def test_what_is_not_in_the_range_is_refused_by_name(kind: type) -> None:
    base = kind("any", config.ModelConfig()) if kind is config.RunConfig else kind()
    for name, hint in numbers(kind).items():
        (of, allowed), *_ = leaves(hint)
        assert allowed is not None
        wrong = [math.nan, math.inf, -math.inf, allowed.low - 1, "1", True]
        wrong += [allowed.high + 1] if math.isfinite(allowed.high) else []
        wrong += [0.5 + max(allowed.low, 0)] if of is int else []
        for value in wrong:
            with pytest.raises(MaskkitError, match=f"--x.{name.replace('_', '-')} .*must be") as caught:
                check_ranges(replace(base, **{name: bad(hint, value)}), "--x.")
            assert "\n" not in str(caught.value)


def test_presets_are_in_range() -> None:
    for preset in zoo.presets():
        for part in (preset.model, preset.input, preset.augment, preset.train):
            assert list(misfits(part)) == [], preset.name


def test_defaults_are_in_range() -> None:
    for part in (config.Pretraining(), config.DataConfig(), config.Tta(), config.PseudoMasks(), config.BoxOnly()):
        assert list(misfits(part)) == []


@given(st.floats(allow_nan=True), st.booleans(), st.booleans())
def test_a_range_says_what_it_holds(value: float, without_low: bool, without_high: bool) -> None:
    allowed = Range(0, 1, without_low, without_high)
    assert (value in allowed) == (
        (value > 0 if without_low else value >= 0) and (value < 1 if without_high else value <= 1)
    )
    assert ("above 0" in str(allowed) or "0 and 1" in str(allowed) or "at least 0" in str(allowed)) is True
    assert list(misfit(value, Annotated[float, allowed])) == ([] if value in allowed else [f"must be {allowed}"])


def test_literals_and_texts_have_no_range() -> None:
    assert list(misfit(16, Literal[16, 32])) == []
    assert list(misfit("text", str | None)) == []


TRAIN = ("train", "--model", "yolact-mobilenetv2-256", "--data", "nowhere")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*TRAIN, "--train.lr", "-1"), "--train.lr -1.0: must be above 0"),
        ((*TRAIN, "--train.lr", "nan"), "--train.lr nan: must be above 0"),
        ((*TRAIN, "--train.workers", "-1"), "--train.workers -1: must be between 0 and 1024"),
        ((*TRAIN, "--input.size", "0", "64"), "--input.size 0 64: must be between 1 and 65536"),
        ((*TRAIN, "--train.steps", "0"), "--train.steps 0: must be at least 1"),
        ((*TRAIN, "--train.steps", "-1"), "--train.steps -1: must be at least 1"),
        ((*TRAIN, "--train.clip", "-1"), "--train.clip -1.0: must be at least 0"),
        ((*TRAIN, "--augment.flip", "2"), "--augment.flip 2.0: must be between 0 and 1"),
        ((*TRAIN, "--augment.vertical-flip", "-0.1"), "--augment.vertical-flip -0.1: must be between 0 and 1"),
        ((*TRAIN, "--model.box-only.dilation", "0"), "--model.box-only.dilation 0: must be at least 1"),
        ((*TRAIN, "--data.val-split", "1"), "--data.val-split 1.0: must be between 0 and 1, without these two"),
        (("pretrain", "nowhere", "--lr", "inf"), "--lr inf: must be above 0"),
        (("pretrain", "nowhere", "--size", "0"), "--size 0: must be between 1 and 65536"),
        (("eval", "--data", "x", "--model", "y", "--batch", "0"), "--batch 0: must be between 1 and 65536"),
        (("eval", "--data", "x", "--model", "y", "--workers", "-1"), "--workers -1: must be between 0 and 1024"),
        (("eval", "--data", "x", "--model", "y", "--tta.overlap", "7"), "--tta.overlap 7.0: must be between 0 and 1"),
        (("check", "x", "--samples", "-1"), "--samples -1: must be at least 0"),
        (("demo", "--steps", "0"), "--steps 0: must be at least 1"),
        (("pseudo-masks", "--data", "x", "--steps", "0"), "--steps 0: must be at least 1"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_impossible_numbers_are_wrong_usage(args: tuple[str, ...], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    assert left.value.code == 2
    assert capsys.readouterr().err == f"maskkit: {said}; see --help\n"


def test_a_model_with_impossible_numbers_is_not_made() -> None:
    for wrong in ({"num_classes": 0}, {"width": -8}):
        with pytest.raises(MaskkitError, match="must be at least 1"):
            api.create_model("yolact-mobilenetv2-256", **wrong)  # type: ignore[arg-type]
    assert maskkit.create_model is api.create_model
