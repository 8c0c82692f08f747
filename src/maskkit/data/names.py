"""Class names of the data sets that published checkpoints were trained on, in the order of their class numbers."""

from maskkit.types import Categories

_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
# classes that were planned and never annotated; their ids stay free
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_VOC = (
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)

COCO = Categories(tuple(_COCO.split(", ")), tuple(i for i in range(1, 91) if i not in _COCO_GAPS))
"""The 80 classes of COCO with their ids between 1 and 90."""

COCO_IDS = Categories(
    tuple(COCO.names[COCO.ids.index(i)] if i in COCO.ids else f"unused {i}" for i in range(1, 91)), tuple(range(1, 91))
)
"""Every id from 1 to 90 as a class, as torchvision's models have it; ten of them were never annotated."""

VOC = Categories.of(_VOC.split(", "))
"""The 20 classes of Pascal VOC."""

VOC_SEMANTIC = Categories(("background", *VOC.names), (0, *VOC.ids))
"""The same with the background, as semantic models know them."""


def names_for(classes: int) -> Categories:
    """The classes of a published checkpoint by their number; ``class 0``, ``class 1``, ... where none is known."""
    known = {len(c): c for c in (COCO, COCO_IDS, VOC, VOC_SEMANTIC)}
    return known.get(classes) or Categories.of(f"class {i}" for i in range(classes))
