"""Faster R-CNN against detectron2: the cases have the layout of Mask R-CNN's."""

from tests.parity.mask_rcnn import run

__all__ = ["run"]
