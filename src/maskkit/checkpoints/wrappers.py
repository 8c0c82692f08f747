"""Finding the weights of one network in what a training script has saved around them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from maskkit.checkpoints.pickles import mappings_in, tensors_in
from maskkit.errors import DataError

_AVERAGES = ("model_ema", "ema_state_dict", "state_dict_ema", "ema_model", "ema")
_NAMES = (*_AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "params")
"""Keys under which networks are saved, the preferred first: averaged weights predict better."""

_NO_NETWORK = ("optim", "sched", "scaler", "callback", "criterion", "statistics", "buffer")
"""Parts of the keys of what else is saved: tensors of optimizers are not weights."""

_PREFIXES = (
    "module.",
    "model.",
    "_orig_mod.",
    "network.",
    "net.",
    "ema_model.",
    "model_ema.",
    "ema.",
    "averaged_model.",
)
"""What wrappers put before every name: data-parallel training, Lightning, torch.compile, moving averages."""

_TWINS = ("student", "teacher", "momentum_encoder", "target", "online", "shadow")
"""Names of networks that are trained beside each other."""


def find_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in the content of a checkpoint, under the network's own names.

    Raises `DataError`, with the remedy, when there are none, and when several networks could be meant.
    """
    candidates: dict[tuple[str, ...], dict[str, Tensor]] = {
        place: tensors
        for place, mapping in mappings_in(content)
        if not any(part in key.lower() for key in place for part in _NO_NETWORK)
        and (tensors := tensors_in(mapping, path))
    }
    candidates = _without_mmengines_raw(candidates)
    # numbers of epochs and steps may be tensors too
    candidates = {p: s for p, s in candidates.items() if any(t.ndim for t in s.values())} or candidates
    if not candidates:
        raise DataError(f"{path}: contains no named tensors; give a file with a state_dict")
    return own_names(candidates[_preferred(candidates, path)], path)


def own_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights without what wrappers have put before their names or beside them.

    Raises `DataError` when the names are those of several networks of one kind.
    """
    found = {n: t for n, t in state.items() if n != "n_averaged"} if len(state) > 1 else dict(state)
    raw = {"ema_" + name.replace(".", "_") for name in found if "." in name}  # mmcv's hook: the average has the names
    found = {name: tensor for name, tensor in found.items() if name not in raw}
    while True:
        found = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}
        prefix = next((p for p in _PREFIXES if found and all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = tensor
    wrapped = {first: group for first, group in groups.items() if f"{first}." in _PREFIXES or first in _TWINS}
    if len(wrapped) < 2 or len(wrapped) != len(groups) or len({frozenset(g) for g in wrapped.values()}) > 1:
        return found
    averages = [first for first in wrapped if first in _AVERAGES]
    if len(averages) == 1:
        return own_names(wrapped[averages[0]], path)
    raise DataError(
        f"{path}: contains {len(wrapped)} networks of one kind, {', '.join(sorted(wrapped))}; save the one to use: "
        f"{{n.removeprefix('NAME.'): t for n, t in state.items() if n.startswith('NAME.')}}"
    )


def _without_mmengines_raw(
    candidates: Mapping[tuple[str, ...], dict[str, Tensor]],
) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Without ``ema_state_dict`` of mmengine, whose hook puts the average into ``state_dict`` and the raw weights here.

    The hook's part is known by its counter ``steps`` and by the prefix ``module.``.
    """
    other = candidates.get(("ema_state_dict",), {})
    swapped = ("state_dict",) in candidates and "steps" in other
    swapped = swapped and all(name == "steps" or name.startswith("module.") for name in other)
    return {place: state for place, state in candidates.items() if not swapped or place != ("ema_state_dict",)}


def _preferred(candidates: Mapping[tuple[str, ...], Mapping[str, Tensor]], path: Path) -> tuple[str, ...]:
    """Where the weights are: under the best known name at every level; else the only place, or the outermost."""
    places: list[tuple[str, ...]] = list(candidates)
    for depth in range(max(map(len, places)) + 1):
        here = [place for place in places if len(place) == depth]
        deeper = [place for place in places if len(place) > depth]
        keys = {place[depth] for place in deeper}
        named = next((name for name in _NAMES if name in keys), None)
        if named is not None:
            places = [place for place in deeper if place[depth] == named]
        elif here:
            return here[0]
        elif len(keys) > 1:
            listed = ", ".join(f"{key!r}" for key in sorted(keys)[:6])
            raise DataError(
                f"{path}: contains tensors in several places ({listed}); save the one to use: "
                "torch.save(torch.load(FILE, weights_only=True)[KEY], NEW)"
            )
    return places[0]
