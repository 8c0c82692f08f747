"""The classes of Pascal VOC."""

from maskkit.prediction import Categories

_NAMES = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)

VOC = Categories.of(_NAMES.split(", "))
"""The 20 classes of Pascal VOC."""
