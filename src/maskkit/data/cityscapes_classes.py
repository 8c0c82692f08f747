"""The classes of Cityscapes, by the values of its ``labelIds``."""

from maskkit.prediction import Categories

NAMES = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road", "sidewalk",
    "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole", "polegroup",
    "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus",
    "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
"""Names of the values 0 to 33."""
EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Values of the 19 classes that are trained and evaluated."""
FIRST_THING = 24
"""Classes from this value on have instances."""

CITYSCAPES = Categories(
    tuple(NAMES[value] for value in EVALUATED), EVALUATED, tuple(value >= FIRST_THING for value in EVALUATED)
)
"""The 19 classes, of which 8 are things."""
