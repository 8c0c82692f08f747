"""What every method is: a module with `forward`, `loss`, `select`, and the one `decode` they share."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.config import DataConfig, ModelConfig
from maskkit.decode.finish import finish
from maskkit.types import Batch, Categories, ImageMeta, Prediction, Target


class Selected(NamedTuple):
    """The K best objects of each image, fixed shapes, so that `forward` and `select` export as one graph.

    A padding row has score 0. Masks are probabilities on a grid that covers the whole network input.
    """

    boxes: Float[Tensor, "b k 4"]
    """``x1 y1 x2 y2`` relative to the network's input, 0 to 1."""
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    masks: Float[Tensor, "b k h w"]
    mask_scores: Float[Tensor, "b k"]
    """What ranks the masks; equal to ``scores`` unless the method rates masks apart."""


class SelectedBoxes(NamedTuple):
    """What a detector gives: the K best boxes of each image, as in `Selected`, and no masks."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]


class SelectedAtLocations(NamedTuple):
    """As `Selected`, where the value of a cell belongs to its pixel ``size // 2`` and not to its middle, which is half
    a pixel before."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    location_masks: Float[Tensor, "b k h w"]
    mask_scores: Float[Tensor, "b k"]


class SelectedInBoxes(NamedTuple):
    """The K best objects of each image, as `Selected`, with masks on a grid over each object's box."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    box_masks: Float[Tensor, "b k m m"]
    """Probabilities; beyond the outermost cells is nothing."""
    mask_scores: Float[Tensor, "b k"]


class SelectedInWholePixels(NamedTuple):
    """As `SelectedInBoxes`, with masks that are put into boxes of whole original pixels, as torchvision does it."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    whole_box_masks: Float[Tensor, "b k m m"]
    mask_scores: Float[Tensor, "b k"]


class SelectedUpToLastPixel(NamedTuple):
    """As `SelectedInWholePixels`, where a box ends with the number of its last pixel, as in Detectron."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    last_pixel_masks: Float[Tensor, "b k m m"]
    mask_scores: Float[Tensor, "b k"]


class SelectedInWindows(NamedTuple):
    """As `SelectedInBoxes`, where the boxes are windows that may reach out of the image, and are no boxes of objects
    (InstanceFCN): an object gets the box of its mask."""

    boxes: Float[Tensor, "b k 4"]
    labels: Int[Tensor, "b k"]
    scores: Float[Tensor, "b k"]
    window_masks: Float[Tensor, "b k m m"]


class SelectedVotes(NamedTuple):
    """Objects whose masks are voted on by regions (FCIS). The first of the N rows are the objects, best first; the last
    R, with score 0, are the regions. An object gets the box of its mask."""

    boxes: Float[Tensor, "b n 4"]
    labels: Int[Tensor, "b n"]
    scores: Float[Tensor, "b n"]
    region_masks: Float[Tensor, "b n m m"]
    """Probabilities on a grid over the box."""
    votes: Float[Tensor, "b n r"]
    """Weight of each region's mask in the object's; their sum is 1, or 0 for what is no object."""


class SelectedKernels(NamedTuple):
    """Maps of a method that grows instances from kernels (PSENet), on a grid that covers the whole network input."""

    kernels: Float[Tensor, "b n h w"]
    """Logits of the complete objects, then of ever smaller kernels."""
    classes: Int[Tensor, "b h w"]
    """The likeliest class of each cell, if it is part of an object."""
    limits: Float[Tensor, "b 2"]
    """Cells and mean probability of the least instance that counts, the same for every image."""


class SelectedEmbeddings(NamedTuple):
    """Maps of a method that clusters the embeddings of pixels, on a grid that covers the whole network input."""

    embeddings: Float[Tensor, "b d h w"]
    foreground: Float[Tensor, "b h w"]
    """Probability of being part of any object."""
    classes: Int[Tensor, "b h w"]
    """The likeliest class of each cell, if it is part of an object."""
    limits: Float[Tensor, "b 3"]
    """Cells and mean probability of the least instance that counts, bandwidth of the clustering."""


class SelectedSemantic(NamedTuple):
    """The class of every pixel, as logits on a grid that covers the whole network input."""

    logits: Float[Tensor, "b c h w"]


class SelectedSegments(NamedTuple):
    """Segments that compete for the pixels of a panoptic image: each goes to the one that claims it most."""

    segment_logits: Float[Tensor, "b q h w"]
    """Mask logits on a grid that covers the whole network input."""
    labels: Int[Tensor, "b q"]
    """Class number; the number of classes stands for no object."""
    scores: Float[Tensor, "b q"]
    """Probability of that label."""
    limits: Float[Tensor, "b 2"]
    """The score that a segment exceeds, and the share of its own mask that it keeps at least against the others; the
    same for every image."""


class Model(nn.Module, ABC):
    """A segmentation method. `forward` gives the same type in training and evaluation; nothing is resized inside."""

    tasks: ClassVar[tuple[str, ...]] = ("instance",)
    needs: ClassVar[tuple[str, ...]] = ("masks",)
    """Label kinds of which one is enough for the loss."""
    config: ModelConfig

    @classmethod
    def task_of(cls, config: ModelConfig) -> str:
        """What a model of ``config`` is measured by: the first of ``tasks``, unless the config chooses among them."""
        return cls.tasks[0]

    @classmethod
    def needs_of(cls, config: ModelConfig) -> tuple[str, ...]:
        """Label kinds of which one is enough for the loss of ``config``."""
        return cls.needs

    @property
    def task(self) -> str:
        """What the model is measured by."""
        return self.task_of(self.config)

    @abstractmethod
    def forward(self, images: Float[Tensor, "b 3 h w"], targets: list[Target] | None = None) -> Any:
        """Raw outputs of normalised images. ``targets`` serve two-stage sampling only."""

    @abstractmethod
    def loss(self, raw: Any, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Weighted fp32 loss terms; a batch without objects gives zeros that keep the graph."""

    @abstractmethod
    def select(self, raw: Any) -> Any:
        """What is needed to name the objects as tensors of fixed shape: one of the kinds of `Selected`."""

    def adopt_backbone(self) -> None:
        """Called when the backbone has got the weights that a training starts from: for copies of its layers."""

    def objection(self, data: DataConfig, categories: Categories) -> str | None:
        """Why the model cannot learn from such data, None when it can."""
        return "does not learn from saliency maps; leave --data.saliency out" if data.saliency is not None else None

    def decode(self, raw: Any, metas: list[ImageMeta], categories: Categories, score: float = 0.0) -> list[Prediction]:
        """Predictions in original pixels, objects with a score above ``score`` only."""
        chosen = self.select(raw)
        arrays = {name: np.asarray(t.detach().float().cpu()) for name, t in chosen._asdict().items()}
        return finish(arrays, metas, categories, score)
