"""Instances and boxes: COCO's AP, report and results files."""
