"""The cards of the zoo: everything that is declared about a method and its presets."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskkit.config import AugmentConfig, InputConfig, ModelConfig, TrainConfig
from maskkit.prediction import Categories

if TYPE_CHECKING:
    from maskkit.models.base import Model

Rename = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""From a state dict with official names to ours. Raises `DataError` for an unknown name."""


@dataclass(frozen=True)
class Weights:
    """Published weights of a preset. Those with an address are fetched, others are downloaded by hand."""

    source: str
    """Who publishes them: a repository or a library."""
    licence: str
    """Its SPDX identifier where it has one, else a short name; ``--accept-licence`` takes it."""
    torchvision: str = ""
    """Their name in torchvision, which knows the address."""
    url: str = ""
    """Address of the file, as its publisher gives it."""
    sha256: str = ""
    """Of the file, in hexadecimal: all 64 digits, or the first 8 or more where the publisher gives only those, as in
    the file names of OpenMMLab and torch.hub. Empty: none is published."""
    md5: str = ""
    """The same of a zoo that publishes only this: detectron2's file names end with its first six digits."""
    bytes: int | None = None
    """Size of the file; None: not published."""
    non_commercial: bool = False
    """Whether the licence does not allow every use, or there is none: fetched only once it has been accepted."""

    bgr: bool = False
    """Whether they were trained on images in BGR, which names of mmdetection do not tell (its caffe style)."""

    def at(self, url: str, sha256: str = "", bytes: int | None = None) -> "Weights":
        """The same publisher's weights at an address. Without ``sha256`` it is what a file name of OpenMMLab ends with,
        ``..._20200316-afc5f8a2.pth``, and ``md5`` what one of detectron2 ends with, ``model_final_a54504.pkl``."""
        found = re.search(r"-([0-9a-f]{8,64})\.pth$|_final_([0-9a-f]{6})\.pkl$", url)
        sha, md5 = found.groups("") if found is not None else ("", "")
        return replace(self, url=url, sha256=sha256 or sha, md5=md5, bytes=bytes)

    @property
    def fetched(self) -> bool:
        """Whether they can be downloaded by a program."""
        return bool(self.url or self.torchvision)

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
    model: "type[Model[Any, Any]]"
    presets: tuple[Preset, ...]
    rename: Rename | None = None
    """The key map for official checkpoints; None: none can be loaded."""
    agreement: str = ""
    """The official code that the method reproduces, as the tests in ``tests/parity`` show."""
