"""Boxes, run lengths, polygons, resampling, suppression: what knows no model and no data set."""
