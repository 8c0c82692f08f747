"""NanoDet-Plus: a detector of a million parameters for phones and small processors (RangiLyu/nanodet, 2021).

========  ================================  ===============================================================
`Raw`     shape (416 x 416, COCO), finest   meaning
========  ================================  ===============================================================
logits    4 x (B, 80, 52, 52)               class logits, whose scores estimate the IoU of the box too
sides     4 x (B, 32, 52, 52)               logits of the distances to left, top, right, bottom, 8 bins each
extra     none                              what a mask method adds
========  ================================  ===============================================================

Differences from the official code, all deliberate: there is no second, larger head that guides the label assignment at
the beginning of a training, the network's own predictions do; background inside a crowd is ignored; at most
``candidates`` pairs of location and class enter NMS.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from maskkit.config import ModelConfig
from maskkit.decode import BoxesOnly
from maskkit.decode.outputs import Boxes
from maskkit.models.base import Model
from maskkit.nn.backbones.nanodet import GhostPan
from maskkit.nn.backbones.shufflenet import ShuffleNetV2
from maskkit.nn.fcos import require_whole_cells
from maskkit.nn.losses import in_fp32
from maskkit.nn.nanodet import NanoDetConfig, NanoDetHead, NanoDetRaw, detect, extent
from maskkit.nn.nanodet_loss import nanodet_loss
from maskkit.targets import Batch, Target


@dataclass(frozen=True)
class NanoDetModelConfig(ModelConfig):
    """Knobs of NanoDet-Plus; the defaults are the published NanoDet-Plus-m for COCO."""

    detector: NanoDetConfig = field(default_factory=NanoDetConfig)


class NanoDet(Model[NanoDetRaw, Boxes[Tensor]]):
    """The plain detector."""

    tasks: ClassVar[tuple[str, ...]] = ("detection",)
    supervision: ClassVar[frozenset[str]] = frozenset({"boxes"})
    decoder = BoxesOnly()
    config: NanoDetModelConfig

    def __init__(self, config: NanoDetModelConfig) -> None:
        super().__init__()
        self.config = config
        detector = config.detector
        self.backbone = ShuffleNetV2(detector.stage_widths, detector.stage_units, detector.batch_norm)
        self.fpn = GhostPan(detector.stage_widths, detector.width, detector.batch_norm)
        self.head = NanoDetHead(detector, config.num_classes)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        sizes: Int[Tensor, "b 2"] | None = None,
        targets: list[Target] | None = None,
    ) -> NanoDetRaw:
        """Raw outputs of normalised images, whose sides must be multiples of 32."""
        require_whole_cells(images)
        features = self.backbone(images)
        return self.head(self.fpn([features[s] for s in (8, 16, 32)]))

    def loss_terms(self, raw: NanoDetRaw, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """Quality focal, GIoU and distribution focal terms."""
        return nanodet_loss(in_fp32(raw), batch, self.config.detector)[0]

    def select(self, raw: NanoDetRaw) -> Boxes[Tensor]:
        """The best boxes after NMS."""
        raw = in_fp32(raw)
        found = detect(raw, self.config.detector)
        return Boxes(found.boxes / extent(raw), found.labels, found.scores)
