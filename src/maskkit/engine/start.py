"""Whether a training may continue from the checkpoint in its folder; `maskkit.engine.initial` starts a new one."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maskkit.checkpoints.checkpoint import config_of
from maskkit.checkpoints.header import categories_of, read_header
from maskkit.config import RunConfig, TrainConfig, to_dict
from maskkit.engine.plan import steps_of
from maskkit.errors import MaskkitError
from maskkit.plain_types import flat
from maskkit.prediction import Categories

_FREE_TO_CHANGE = ("train.workers", "train.save_every", "train.log", "train.patience")
"""Settings that do not change the steps of a run."""

_LENGTH = ("train.epochs", "train.steps")
"""Settings that may grow once a run has ended."""


def check_same(config: RunConfig, categories: Categories, images: int, last: Path, world: int = 1) -> list[str]:
    """Raise `MaskkitError` when the run in ``last`` had other settings, classes, data or number of processes.

    The error names every difference. ``world`` is the number of processes: each one draws its own random numbers, and
    its batch norm sees only its images, so another number would give another result. A finished run may become longer;
    then a line that says so is returned.
    """
    header = read_header(last)
    earlier = config_of(header, last)
    then, now = (flat(to_dict(c)) for c in (earlier, config))
    before = header["info"].get("images")
    notes = extension(earlier.train, config.train, header["info"].get("step"), images)
    for facts, known, count in ((then, categories_of(header), before), (now, categories, images)):
        facts |= {"classes": list(known.names), "class ids": list(known.ids), "things": list(known.things)}
        facts["training images"] = count
    then["processes"], now["processes"] = header["info"].get("processes", world), world
    refuse_changes(last, then, now, (*_FREE_TO_CHANGE, *_LENGTH) if notes else _FREE_TO_CHANGE)
    return notes


def extension(then: TrainConfig, now: TrainConfig, step: object, images: int) -> list[str]:
    """The line about a run that ended after ``step`` steps, if ``now`` makes it longer; otherwise empty."""
    before, after = steps_of(then, images), steps_of(now, images)
    if then.minutes or now.minutes or step != before or after <= before:
        return []
    return [
        f"the run had ended after step {before} and goes on to step {after}: from here the learning rate is that of a "
        f"run of {after} steps"
    ]


def refuse_changes(last: Path, then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise `MaskkitError` when a setting outside ``free`` differs from that of the run in ``last``."""
    changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k) and k not in free]
    if changed:
        what = "; ".join(f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in changed)
        if set(changed) & set(_LENGTH):
            what += " (epochs and steps may grow once a run has ended)"
        raise MaskkitError(
            f"{last}: cannot continue this run with other settings: {what}; use the former values, or choose another "
            "folder with --out"
        )
