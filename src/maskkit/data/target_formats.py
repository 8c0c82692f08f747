"""The formats that data sets are written in. A module of its own, so that the command line can list them cheaply."""

from typing import Literal, get_args

TargetFormat = Literal[
    "coco",
    "yolo",
    "labelme",
    "voc",
    "png",
    "coco-panoptic",
    "cvat",
    "labelstudio",
    "via",
    "datumaro",
    "supervisely",
    "cityscapes",
]
TARGETS: tuple[TargetFormat, ...] = get_args(TargetFormat)
