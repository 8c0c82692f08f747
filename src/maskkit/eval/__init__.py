"""Measuring predictions: COCO average precision, and the report that shows where a model fails."""
