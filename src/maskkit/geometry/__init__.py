"""Geometry of boxes and masks: run lengths, polygons, resampling, NMS. Knows no model and no data set."""
