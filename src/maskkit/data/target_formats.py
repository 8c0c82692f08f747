"""The formats that data sets are written in, in a module that the command line can load without the writers."""

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
