"""Weights that a backbone can start from: timm's, by their names."""

import re
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from maskkit.errors import DataError
from maskkit.nn.finite import check_finite

_LISTS = re.compile(r"^(layers|stages)\.(\d)")
"""Lists of stages in timm's files. Its feature extractors have the stages as separate children."""


class Pretrained(nn.Module, ABC):
    """A backbone that can start from weights with timm's names."""

    @property
    @abstractmethod
    def timm_name(self) -> str:
        """timm's name of the network."""

    @property
    @abstractmethod
    def timm_part(self) -> nn.Module:
        """The module whose parameters have timm's names."""

    @property
    def whole(self) -> bool:
        """Whether `timm_part` has the names of timm's whole network, rather than those of its feature extractor."""
        return True

    @property
    def timm_std(self) -> tuple[float, float, float] | None:
        """What timm divides the colours (0..1) by for its own weights of this network; None where it has none."""
        card = timm.get_pretrained_cfg(self.timm_name)
        return None if card is None else card.std  # type: ignore[return-value]

    def resize(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights in the sizes of this backbone; by default they are left as they are."""
        return state

    @property
    def is_of_timm(self) -> bool:
        """Whether the tensors have the shapes of timm's network of this name, so that its weights fit."""
        with torch.device("meta"):
            theirs = timm.create_model(self.timm_name, features_only=not self.whole).state_dict()
        shapes = {_LISTS.sub(r"\1_\2", n): t.shape for n, t in theirs.items()}
        return all(shapes.get(n) == t.shape for n, t in self.timm_part.state_dict().items())

    def download(self) -> dict[str, Tensor]:
        """timm's own weights of this network. Raises `DataError` without a network connection."""
        try:
            with _without_retries():
                return timm.create_model(self.timm_name, pretrained=True, features_only=not self.whole).state_dict()
        except Exception as error:
            raise DataError(
                f"timm could not download weights for {self.timm_name!r} ({error}); without a network give a local "
                "file: --model.backbone.weights FILE, or train from random weights: --weights random"
            ) from error

    def load_weights(self, state: Mapping[str, Tensor], source: str | Path) -> list[str]:
        """Load the tensors of ``source``; returns the names that this backbone has no place for (a classifier, say).

        Raises `DataError` when a tensor of the backbone is missing, has another shape, or is not a number.
        """
        own = self.timm_part.state_dict()
        state = self.resize({_LISTS.sub(r"\1_\2", n): t for n, t in state.items()})
        missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
        if missing:
            raise DataError(
                f"{source}: no weights for {len(missing)} of {len(own)} tensors of this backbone, the first is "
                f"{missing[0]!r}; give a file with the tensor names of timm's model of the same name"
            )
        wrong = [n for n in own if n in state and state[n].shape != own[n].shape]
        if wrong:
            n = wrong[0]
            raise DataError(
                f"{source}: {n!r} has shape {tuple(state[n].shape)}, this backbone needs {tuple(own[n].shape)}"
            )
        check_finite({n: state[n] for n in own if n in state}, source)
        self.timm_part.load_state_dict({n: state[n] for n in own if n in state}, strict=False)
        return sorted(set(state) - set(own))


@contextmanager
def _without_retries() -> Iterator[None]:
    """Inside, downloads fail at once where there is no network: the hub's client would try again for a minute."""
    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except OSError:
            constants.HF_HUB_OFFLINE = True  # what was downloaded before is still found
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
