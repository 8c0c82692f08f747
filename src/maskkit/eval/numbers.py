"""Metrics as numbers and as text: shares between 0 and 1, as COCO prints them, None where nothing can be measured."""

from typing import NamedTuple

import numpy as np

Metric = float | None
"""A share between 0 and 1; None: there are no such objects, pixels or segments."""


class Threshold(NamedTuple):
    """A score threshold, and F1, precision and recall over all images at it."""

    score: float
    f1: float
    precision: float
    recall: float

    def __str__(self) -> str:
        return (
            f"the highest F1, {shown(self.f1)}, is at score {self.score:.2f}: precision {shown(self.precision)}, "
            f"recall {shown(self.recall)}"
        )


def shown(value: Metric) -> str:
    """A metric as text, with three digits; n/a for None, and for the -1 of arrays."""
    return f"{value:.3f}" if value is not None and value >= 0 else "n/a"


def known(value: float) -> Metric:
    """A value of an array, in which -1 means that there is nothing to measure."""
    return float(value) if value >= 0 else None


def rank(value: Metric) -> float:
    """A number to sort by: what was not measured comes after everything."""
    return -1.0 if value is None else value


def mean(values: np.ndarray) -> Metric:
    """The mean of the values of an array that are not -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
