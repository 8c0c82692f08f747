"""Instances and boxes: COCO's AP, its report and its files."""
