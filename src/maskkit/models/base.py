"""What every method is: a module with `forward`, `loss`, `select`, and a decoder that reads what `select` gives."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import DataConfig, ModelConfig
from maskkit.decode import Decoder, decode
from maskkit.prediction import Categories, ImageMeta, Prediction
from maskkit.targets import Batch, Target

LOSS_KEYS = ("classification", "box", "mask", "quality", "semantic")
"""What the losses of every method are called."""

Raw = TypeVar("Raw", bound=NamedTuple)
Out = TypeVar("Out", bound=NamedTuple)


class Model(nn.Module, ABC, Generic[Raw, Out]):
    """A segmentation method. `forward` gives the same type in training and evaluation; nothing is resized inside.

    ``Raw`` is what `forward` gives, ``Out`` one of the named tuples of `maskkit.decode.outputs`.
    """

    tasks: ClassVar[tuple[str, ...]] = ("instance",)
    supervision: ClassVar[frozenset[str]] = frozenset({"masks"})
    """Kinds of labels (``masks``, ``boxes``, ``tags``, ``label_map``) of which one is enough for the loss."""
    draws_in_boxes: ClassVar[bool] = False
    """Whether the method can draw masks in given boxes, by `select_in`."""
    config: ModelConfig
    decoder: Decoder
    """How what `select` gives becomes a prediction; written into every checkpoint and export."""

    @classmethod
    def task_of(cls, config: ModelConfig) -> str:
        """The task of a model of ``config``: the first of ``tasks``, unless the config chooses among them."""
        return cls.tasks[0]

    @classmethod
    def supervision_of(cls, config: ModelConfig) -> frozenset[str]:
        """Kinds of labels of which one is enough for the loss of ``config``."""
        return cls.supervision

    @property
    def task(self) -> str:
        """What the model is measured by."""
        return self.task_of(self.config)

    @abstractmethod
    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> Raw:
        """Raw outputs of normalised images.

        ``sizes`` are the (height, width) of the images inside their padding; None says that there is none. ``targets``
        serve the sampling of two-stage methods in training.
        """

    @abstractmethod
    def loss_terms(self, raw: Raw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Weighted fp32 loss terms; a batch without objects gives zeros that keep the graph.

        A term is called ``KEY`` or ``KEY/TERM``, with a key of `LOSS_KEYS`.
        """

    def loss(self, raw: Raw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms summed by their key, so that the curves of any two methods can be laid over each other."""
        summed: dict[str, Tensor] = {}
        for name, term in self.loss_terms(raw, batch).items():
            key = name.partition("/")[0]
            summed[key] = summed[key] + term if key in summed else term
        return summed

    @abstractmethod
    def select(self, raw: Raw) -> Out:
        """The tensors of fixed shape that the decoder reads; exported with `forward` as one graph."""

    def select_in(self, raw: Raw, boxes: Float[Tensor, "b n 4"]) -> Out:
        """What `select` gives for objects whose ``boxes`` are known, relative to the input; for ``draws_in_boxes``.

        The label of each is the number of its box, its score is 1, and its mask score says how sure the mask is.
        """
        raise NotImplementedError(f"{type(self).__name__} draws no masks in given boxes")

    def adopt_backbone(self) -> None:
        """Called when the backbone has got the weights that a training starts from: for copies of its layers."""

    def why_not(self, data: DataConfig, categories: Categories) -> str | None:
        """Why the model cannot learn from such data, None when it can."""
        return "does not learn from saliency maps; leave --data.saliency out" if data.saliency is not None else None

    def decode(self, raw: Raw, metas: list[ImageMeta], categories: Categories, score: float = 0.0) -> list[Prediction]:
        """Predictions in original pixels, with objects of a score above ``score`` only."""
        return decode(self.decoder, to_arrays(self.select(raw)), metas, categories, score)


def to_arrays(out: NamedTuple) -> dict[str, np.ndarray]:
    """What `Model.select` gives as float32 arrays, by field: what a decoder reads, and every runtime gives."""
    return {name: np.asarray(tensor.detach().float().cpu()) for name, tensor in out._asdict().items()}
