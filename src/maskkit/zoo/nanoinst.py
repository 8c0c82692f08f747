"""NanoInst: presets. Key map: that of NanoDet-Plus for its detector (`maskkit.zoo.nanodet`)."""

from maskkit.config import AugmentConfig, TrainConfig
from maskkit.models.nanoinst import NanoInst, NanoInstConfig
from maskkit.zoo.card import Method
from maskkit.zoo.recipes import NANODET_INPUT, Recipe

_TRAIN = TrainConfig(
    epochs=40, batch=8, optimizer="adamw", lr=2e-4, backbone_lr=0.1, weight_decay=0.01, warmup=50, clip=10.0
)

METHOD = Method(
    title="NanoInst",
    paper="A method of this project: NanoDet-Plus (RangiLyu, 2021) with the dynamic masks of CondInst (ECCV 2020)",
    model=NanoInst,
    presets=(
        Recipe(NANODET_INPUT, AugmentConfig(expand=2.0), _TRAIN, small=True).preset(
            "nanoinst-416", NanoInstConfig(), ours="251 COCO val2017 photographs: mask AP 0.257, box AP 0.362"
        ),
    ),
    agreement="its detector: RangiLyu/nanodet, 2 cases",
)
