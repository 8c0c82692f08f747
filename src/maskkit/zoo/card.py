"""The cards of the zoo: everything that is declared about a method and its presets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, TrainConfig
from maskkit.prediction import Categories

if TYPE_CHECKING:
    from maskkit.models.base import Model

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From a state dict with official names to ours. Raises `DataError` for an unknown name."""


@dataclass(frozen=True)
class Weights:
    """Published weights of a preset."""

    source: str
    """Who publishes them: a repository or a library."""
    licence: str
    torchvision: str = ""
    """Their name in torchvision; such weights can be fetched, others are downloaded by hand."""

    def __str__(self) -> str:
        return f"{self.source} ({self.licence})"


@dataclass(frozen=True)
class Preset:
    """A named configuration of a method, with its recipe, its published weights and its results."""

    name: str
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    classes: Categories
    """The classes of the published weights, or of the data set that the preset's sizes were chosen for."""
    weights: Weights | None
    """None: no weights are published."""
    paper: str | None
    """The result of the paper or of the publisher, with its data set; None: there is none."""
    ours: str | None
    """Our own result, with its data set; None: not measured."""
    small: bool = False
    """Whether it trains on two CPU cores in minutes."""


@dataclass(frozen=True)
class Method:
    """A method of the zoo: its model, its presets, and the key map for official checkpoints."""

    title: str
    """The name of the method in the literature."""
    paper: str
    """Authors, title, venue."""
    model: "type[Model]"
    presets: tuple[Preset, ...]
    rename: Rename | None = None
    """The key map for official checkpoints; None: none can be loaded."""
    agreement: str = ""
    """The official code that the method reproduces, as the tests in ``tests/parity`` show."""
