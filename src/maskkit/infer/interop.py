"""Predictions in the types of other libraries."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from maskkit.errors import MaskkitError

if TYPE_CHECKING:
    import supervision

    from maskkit.prediction import Prediction


def to_supervision(prediction: Prediction) -> supervision.Detections:
    """The instances as `supervision.Detections`: masks ``(N, H, W)``, class names in ``data["class_name"]``, track
    numbers as ``tracker_id``.

    Raises `MaskkitError` if supervision is not installed.
    """
    try:
        with warnings.catch_warnings():  # it warns when OpenCV is missing, which is not used here
            warnings.simplefilter("ignore", UserWarning)
            import supervision as sv
    except ImportError as error:
        raise MaskkitError(f"supervision is not installed ({error}); pip install 'maskkit[interop]'") from None
    found = prediction.instances
    if found is None or len(found) == 0:
        return sv.Detections.empty()
    names = np.array([prediction.categories.names[int(label)] for label in found.labels])
    return sv.Detections(
        xyxy=np.asarray(found.boxes, np.float32),
        mask=found.masks.dense() if found.masks is not None else None,
        confidence=np.asarray(found.scores, np.float32),
        class_id=np.asarray(found.labels, int),
        tracker_id=np.asarray(found.track_ids, int) if found.track_ids is not None else None,
        data={"class_name": names},
    )
