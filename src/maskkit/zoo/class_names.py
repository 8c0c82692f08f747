"""Class names of the data sets that published checkpoints were trained on, in the order of their class numbers."""

from maskkit.data.voc_classes import VOC
from maskkit.prediction import Categories

_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
)
# classes that were never annotated; their ids are unused
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_COCO_STUFF = (
    "banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, house, "
    "light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf, snow, "
    "stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind, window-other, "
    "tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, floor-other-merged, "
    "pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, food-other-merged, "
    "building-other-merged, rock-merged, wall-other-merged, rug-merged"
)
_COCO_STUFF_IDS = (
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154),
    *(155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181),
    *range(184, 201),
)
_ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)
_CITYSCAPES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
_CAMVID = "sky, building, pole, road, sidewalk, tree, sign, fence, car, pedestrian, bicyclist"

COCO = Categories(tuple(_COCO.split(", ")), tuple(i for i in range(1, 91) if i not in _COCO_GAPS))
"""The 80 classes of COCO with their ids between 1 and 90."""

COCO_IDS = Categories(
    tuple(COCO.names[COCO.ids.index(i)] if i in COCO.ids else f"unused {i}" for i in range(1, 91)), tuple(range(1, 91))
)
"""Every id from 1 to 90 as a class, as in torchvision's models; ten of them were never annotated."""

COCO_PANOPTIC = Categories(
    (*COCO.names, *_COCO_STUFF.split(", ")), (*COCO.ids, *_COCO_STUFF_IDS), (True,) * 80 + (False,) * 53
)
"""The 133 classes of COCO panoptic: 80 things, 53 stuff classes."""

VOC_SEMANTIC = Categories(("background", *VOC.names), (0, *VOC.ids), (False, *VOC.things))
"""The same with background, for semantic models."""

ADE20K = Categories.of((), _ADE20K.split(", "))
"""The 150 classes of ADE20K's scene parsing benchmark."""

CITYSCAPES = Categories.of((), _CITYSCAPES.split(", "))
"""The 19 classes that Cityscapes evaluates."""

CAMVID = Categories.of((), _CAMVID.split(", "))
"""The 11 classes of CamVid that SegNet's paper evaluates."""

TEXT = Categories.of(["text"])

OBJECT = Categories.of(["object"])
"""The single class of class-agnostic methods."""

DATA_SETS = {
    "coco": COCO,
    "coco-91": COCO_IDS,
    "coco-panoptic": COCO_PANOPTIC,
    "voc": VOC,
    "voc-semantic": VOC_SEMANTIC,
    "ade20k": ADE20K,
    "cityscapes": CITYSCAPES,
    "cityscapes-things": Categories.of(CITYSCAPES.names[11:]),
    "cityscapes-panoptic": Categories(CITYSCAPES.names, CITYSCAPES.ids, (False,) * 11 + (True,) * 8),
    "camvid": CAMVID,
}
"""The names by which ``maskkit import --classes`` knows them."""
