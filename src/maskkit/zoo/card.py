"""What the zoo says about a method and its presets: facts that are declared once, and read by everything else."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, TrainConfig
from maskkit.prediction import Categories

if TYPE_CHECKING:
    from maskkit.models.base import Model

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Official parameter names to ours. Raises `DataError` for a name that the method has not."""


@dataclass(frozen=True)
class Weights:
    """Weights that somebody publishes for a preset."""

    source: str
    """Who publishes them: a repository or a library."""
    licence: str
    torchvision: str = ""
    """What torchvision calls them; such weights are fetched, others are downloaded by hand."""

    def __str__(self) -> str:
        return f"{self.source} ({self.licence})"


@dataclass(frozen=True)
class Preset:
    """A named starting point: a method with its sizes, its recipe, its published weights and its numbers."""

    name: str
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    classes: Categories
    """The classes of the published weights, or of the data set that the preset's sizes were chosen for."""
    weights: Weights | None
    """None: nobody publishes weights of it."""
    paper: str | None
    """The number of the paper or of the publisher, with its data set; None: there is none."""
    ours: str | None
    """Our own measured number, with its data set; None: not measured."""
    small: bool = False
    """Whether it trains on two processor cores in minutes."""


@dataclass(frozen=True)
class Method:
    """A method of the zoo: its model, its presets, and the key map of its published weights."""

    title: str
    """The name as the field writes it."""
    paper: str
    """Authors, title, venue."""
    model: "type[Model[Any, Any]]"
    presets: tuple[Preset, ...]
    rename: Rename | None = None
    """None: no foreign weights can be loaded."""
    agreement: str = ""
    """Which official code the method equals, as the tests in ``tests/parity`` show."""
