"""Panoptic segments: PQ, its report and its files."""
