"""Cases computed by official implementations: where they lie, what they hold, how numbers are compared.

A folder of goldens holds ``recipe.py`` (weights and images from seeds), ``METHOD/inputs.py`` (raw predictions and
targets from seeds) and ``METHOD/CASE/{manifest.json, outputs.safetensors}``. Cases of a weight file are beside it, in
the folder ``goldens``.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.checkpoints.outline import build
from maskkit.config import RunConfig, change


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BESIDE_WEIGHTS = "goldens"
"""The folder of the cases that lie beside a weight file; their manifests name the method."""


class _Key(NamedTuple):
    """All that the values of a seeded tensor depend on."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    seed: int
    gain: float


_last_weights: dict[_Key, np.ndarray] = {}
_PIECE = 1 << 14
"""Values that are drawn at a time: 64-bit ones of so many stay in a processor's cache."""


def _fill(recipe: ModuleType, key: _Key) -> np.ndarray:
    """The recipe's ``fill_tensor``; that of a large weight is drawn piece by piece, which takes a third of the time."""
    of_norms = key.name.endswith(("running_var", "running_mean", "bias"))
    if len(key.shape) < 2 or of_norms or not key.dtype.endswith("float32"):
        return recipe.fill_tensor(*key)
    rng, scale = recipe.rng_for(key.name, key.seed), np.sqrt(2.0 / int(np.prod(key.shape[1:]))) * key.gain
    values, piece = np.empty(int(np.prod(key.shape)), np.float32), np.empty(_PIECE)
    for start in range(0, len(values), _PIECE):
        part = piece[: len(values) - start]
        rng.standard_normal(out=part)
        part *= scale
        values[start : start + _PIECE] = part
    return values.reshape(key.shape)


@contextmanager
def watched(*modules: nn.Module) -> Iterator[list[Any]]:
    """What each of the modules gives when a model that contains them is run, in their order."""
    seen: list[Any] = [None] * len(modules)

    def keep(at: int) -> Any:
        return lambda module, inputs, output: seen.__setitem__(at, output)

    hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Case:
    """One golden: its manifest, its stored outputs, and the means to make its inputs again."""

    path: Path
    unchecked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unchecked = set(self.outputs)

    @property
    def method(self) -> str:
        name = self.path.parent.name
        return self.manifest["method"] if name == BESIDE_WEIGHTS else name

    @property
    def id(self) -> str:
        return f"{self.method}/{self.path.name}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())

    @cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        return load_file(self.path / "outputs.safetensors")

    @cached_property
    def recipe(self) -> ModuleType:
        places = (place for p in self.path.parents for place in (p / "recipe.py", p / "goldens" / "recipe.py"))
        module = _load(next(place for place in places if place.exists()), "recipe")
        sys.modules["recipe"] = module  # the inputs of a method import it by this name
        return module

    @cached_property
    def scenes(self) -> ModuleType:
        assert self.recipe
        root = next(p for p in self.path.parents if (p / "scenes.py").exists())
        return _load(root / "scenes.py", "scenes")

    @cached_property
    def inputs(self) -> ModuleType:
        assert self.recipe
        return _load(self.path.parent / "inputs.py", f"inputs_{self.method}")

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    @property
    def seed(self) -> int:
        return self.manifest["seed"]

    def numbers_in(self, text: str) -> list[int]:
        """The integers of a call written in the manifest, e.g. of ``seeded_image(480, 360, seed=12)``."""
        return [int(n) for n in re.findall(r"-?\d+", text)]

    def weights(self) -> dict[str, Tensor]:
        """What the recipe's ``fill_state_dict`` gives for the manifest; tensors are to be read alone.

        Cases of one method often have the same weights: those of the last case are kept.
        """
        gains = self.manifest.get("gains") or []
        keys = []
        for name, shape, dtype in self.manifest["parameters"]:
            gain = next((gain for pattern, gain in gains if re.search(pattern, name)), 1.0)
            keys.append(_Key(name, tuple(shape), dtype, self.seed, gain))
        for other in _last_weights.keys() - set(keys):
            del _last_weights[other]
        for key in keys:
            if key not in _last_weights:
                _last_weights[key] = _fill(self.recipe, key)
        return {key.name: torch.from_numpy(_last_weights[key]) for key in keys}

    @property
    def constants(self) -> dict[str, Tensor]:
        """Tensors of the official state whose values the manifest writes down."""
        return {name: torch.tensor(value) for name, value in self.manifest.get("constants", {}).items()}

    def filled(self, preset: str, state: dict[str, Tensor] | None = None, **knobs: Any) -> Any:
        """The preset's model with ``knobs``, in evaluation, with the case's weights or with other official ones."""
        model = build(RunConfig(preset, change(zoo.preset(preset).model, **knobs)))  # no random weights first
        model.load_state_dict(published.convert(self.weights() if state is None else state, preset, **knobs))
        return model.eval()

    def stored(self, name: str) -> np.ndarray:
        """A stored output, marked as looked at."""
        self.unchecked.discard(name)
        return self.outputs[name]

    def part(self, name: str, ours: Tensor | np.ndarray) -> np.ndarray:
        """The values of ``ours`` that the case stores of an output, flat; all of them when it is stored whole."""
        values = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
        return values.reshape(-1)[:: self.manifest["outputs"][name].get("stride", 1)]

    def sample(self, name: str, ours: np.ndarray) -> np.ndarray:
        """The slices of ``ours`` that the manifest writes behind an output's meaning, e.g. ``masks[:, 3::7, 5::7]``."""
        written = re.search(r"\[([\d:, ]*:[\d:, ]*)\]", self.manifest["outputs"][name].get("meaning", ""))
        axes = [axis.strip().split(":") for axis in written[1].split(",")] if written else []
        return ours[tuple(slice(*(int(n) if n else None for n in axis)) for axis in axes)]

    def unpacked(self, name: str) -> np.ndarray:
        """A stored output of booleans, one bit each, in its shape."""
        shape = self.manifest["outputs"][name]["shape"]
        return np.unpackbits(self.stored(name))[: int(np.prod(shape))].reshape(shape).astype(bool)

    def compare(self, name: str, ours: Tensor | np.ndarray, relative: float, absolute: float = 0.0) -> None:
        """``|ours - official| <= relative * absmax + absolute`` for the stored part of an output."""
        described = self.manifest["outputs"][name]
        if described["shape"] != [1]:
            shape = list(np.shape(ours))
            assert shape == described["shape"], f"{name}: shape {shape} != {described['shape']}"
        official = self.stored(name)
        values = self.part(name, ours).astype(np.float64)
        worst = np.abs(values - official.reshape(-1)).max(initial=0)
        limit = relative * described["absmax"] + absolute
        assert worst <= limit, f"{name}: off by {worst:.3g}, allowed {limit:.3g} (absmax {described['absmax']})"


def find_cases(root: Path, methods: set[str]) -> list[Case]:
    """Cases below ``root``, a folder of methods or one method's own, whose method is among ``methods``."""
    found = [Case(m.parent) for m in sorted(root.rglob("manifest.json"))]
    return [c for c in found if c.method in methods]


def seed_everything() -> None:
    torch.manual_seed(0)
