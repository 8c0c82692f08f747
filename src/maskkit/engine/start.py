"""What a training starts from: given weights, or the checkpoint of the run that it continues."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maskkit.checkpoints.checkpoint import config_of
from maskkit.checkpoints.foreign import read_checkpoint, read_tensors
from maskkit.checkpoints.header import categories_of, is_checkpoint, read_header
from maskkit.config import RunConfig, to_dict
from maskkit.errors import DataError, MaskkitError
from maskkit.models.base import Model
from maskkit.nn.backbones.pretrained import Pretrained
from maskkit.prediction import Categories

_FREE_TO_CHANGE = ("train.workers", "train.save_every", "train.tensorboard")
"""Settings that do not change the result of a run."""


def start_weights(model: Model, config: RunConfig, weights: Path | None) -> list[str]:
    """Load initial weights into a new model; returns lines that say what was loaded and what was not.

    ``weights`` is a maskkit checkpoint, of which all tensors of the same name and shape are taken, or a file with
    timm's names for the backbone. None leaves it to the configuration to name weights for the backbone. Raises
    `DataError` when nothing fits.
    """
    source = weights or config.model.backbone_weights
    if source is None:
        return ["all weights start from random values"]
    if source != weights or not is_checkpoint(Path(source)):
        backbone = dict(model.named_children()).get("backbone")
        if not isinstance(backbone, Pretrained):
            raise DataError(f"{source}: {config.preset} has no backbone that timm knows; give a maskkit checkpoint")
        unused = load_backbone(backbone, source)
        model.adopt_backbone()
        return [f"the backbone starts from {source}" + (f"; not used: {_some(unused)}" if unused else "")]
    own, given = model.state_dict(), read_tensors(Path(source))
    fitting = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape}
    if not fitting:
        raise DataError(f"{source}: no tensor fits {config.preset} by name and shape; give weights of the same preset")
    model.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    return [
        f"{len(fitting)} of {len(own)} tensors start from {source}"
        + (f"; random values for {_some(left)}" if left else "")
    ]


def load_backbone(backbone: Pretrained, source: str | Path) -> list[str]:
    """Load a local file with timm's names, or timm's own download for ``hub``; returns the names without a place.

    Raises `DataError` when the file cannot be read or does not fit.
    """
    state = backbone.download() if str(source) == "hub" else read_checkpoint(source)
    return backbone.load_weights(state, source)


def check_same(config: RunConfig, categories: Categories, images: int, last: Path) -> None:
    """Raise `MaskkitError` when the run in ``last`` had other settings, classes or data; names every difference."""
    header = read_header(last)
    then, now = (_flat(to_dict(c)) for c in (config_of(header, last), config))
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


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}.{key}" if name else key).items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
