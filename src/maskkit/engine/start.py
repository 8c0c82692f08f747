"""Whether a training may continue from the checkpoint in its folder; `maskkit.engine.initial` starts a new one."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maskkit.checkpoints.checkpoint import config_of
from maskkit.checkpoints.header import categories_of, read_header
from maskkit.config import RunConfig, to_dict
from maskkit.errors import MaskkitError
from maskkit.prediction import Categories

_FREE_TO_CHANGE = ("train.workers", "train.save_every", "train.tensorboard", "train.patience")
"""Settings that do not change the steps of a run."""


def check_same(config: RunConfig, categories: Categories, images: int, last: Path) -> None:
    """Raise `MaskkitError` when the run in ``last`` had other settings, classes or data; names every difference."""
    header = read_header(last)
    then, now = (flat(to_dict(c)) for c in (config_of(header, last), config))
    before = header["info"].get("images")
    for facts, known, count in ((then, categories_of(header), before), (now, categories, images)):
        facts |= {"classes": list(known.names), "class ids": list(known.ids), "things": list(known.things)}
        facts["training images"] = count
    refuse_changes(last, then, now, _FREE_TO_CHANGE)


def refuse_changes(last: Path, then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise `MaskkitError` when a setting outside ``free`` differs from that of the run in ``last``."""
    changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k) and k not in free]
    if changed:
        what = "; ".join(f"{k} was {then.get(k)!r} and is {now.get(k)!r}" for k in changed)
        raise MaskkitError(
            f"{last}: cannot continue this run with other settings: {what}; use the former values, or choose another "
            "folder with --out"
        )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}.{key}" if name else key).items()}
