"""Cases computed by official implementations: where they lie, what they hold, how numbers are compared.

A folder of goldens holds ``recipe.py`` (weights and images from seeds), ``METHOD/inputs.py`` (raw predictions and
targets from seeds) and ``METHOD/CASE/{manifest.json, outputs.safetensors}``. Cases of a weight file are beside it, in
the folder ``goldens``.
"""

import importlib.util
import json
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BESIDE_WEIGHTS = "goldens"
"""The folder of the cases that lie beside a weight file; their manifests name the method."""


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
        return self.recipe.fill_state_dict(self.manifest, as_torch=True)

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
