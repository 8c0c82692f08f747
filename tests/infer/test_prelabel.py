"""Predictions of every kind as labels."""

from pathlib import Path

import numpy as np

from maskkit.data.records import Annotation, Record
from maskkit.geometry import rle as mask_math
from maskkit.infer.prelabel import Labeller, as_dataset, candidates, fill_boxes
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction

SIZE = (40, 60)
META = ImageMeta(7, "a.png", SIZE, SIZE)
LEFT = np.zeros(SIZE, bool)
LEFT[5:30, 5:25] = True


def test_objects_above_the_score_become_polygons() -> None:
    masks = Masks.from_dense(np.stack([LEFT, LEFT, np.zeros(SIZE, bool)]))
    boxes = np.array([[5, 5, 25, 30]] * 3, np.float32)
    found = Instances(boxes, np.array([1, 0, 0]), np.array([0.9, 0.2, 0.8]), masks)
    record = Labeller(0.5).record(META, candidates(Prediction(META, Categories.of(["cat", "dog"]), found)))
    (dog,) = record.annotations  # one is too weak, one has no pixel
    assert (record.image_id, record.path, record.size) == (7, Path("a.png"), SIZE)
    assert dog.label == 1
    assert dog.rle(SIZE) == masks.rle()[0]


def test_boxes_without_masks_stay_boxes() -> None:
    found = Instances(np.array([[1, 2, 3, 4]], np.float32), np.array([0]), np.array([0.9]))
    (box,) = Labeller(0.5).record(META, candidates(Prediction(META, Categories.of(["cat"]), found))).annotations
    assert (box.box, box.segmentation) == ((1, 2, 3, 4), None)


def test_segments_and_regions_are_labels_but_the_background_is_none() -> None:
    names = Categories(("background", "cat", "sky"), (0, 3, 9), (False, True, False))
    segments = [PanopticSegment(4, 1, 0.9, True), PanopticSegment(2, 2, 0.3, False)]
    ids = np.where(LEFT, 4, 2).astype(np.int32)
    labels = np.where(LEFT, 2, 0).astype(np.uint8)
    panoptic = Prediction(META, names, panoptic=Panoptic(ids, segments))
    semantic = Prediction(META, names, semantic=labels)
    assert [(p.label, p.score) for p in candidates(panoptic)] == [(1, 0.9), (2, 0.3)]
    assert [(p.label, p.score) for p in candidates(semantic)] == [(2, 1.0)]
    data = as_dataset([Labeller(0.5).record(META, candidates(p)) for p in (panoptic, semantic)], names, Path("a"))
    assert (data.categories.names, data.categories.ids) == (("cat", "sky"), (3, 9))
    assert [(a.id, a.label) for r in data.records for a in r.annotations] == [(1, 0), (2, 1)]


def _prediction(boxes: list[list[float]], labels: list[int], masks: list[np.ndarray]) -> Prediction:
    found = Instances(
        np.array(boxes, np.float32), np.array(labels), np.full(len(labels), 0.3), Masks.from_dense(np.stack(masks))
    )
    return Prediction(META, Categories.of(["dog", "cat"]), found)


def test_given_boxes_get_masks_that_stay_inside() -> None:
    names = Categories.of(["cat", "dog"])
    given = [
        Annotation(4, 0, (5, 5, 25, 28)),
        Annotation(5, 1, (40, 5, 50, 20)),  # nothing is there
        Annotation(6, 0, (0, 0, 60, 40), crowd=True),
        Annotation(7, 1, None, [[1.0, 1, 9, 1, 9, 9]]),
    ]
    record = Record("a", Path("a.png"), SIZE, given)
    made = fill_boxes(record, _prediction([[5, 5, 25, 30]], [0], [LEFT]), names, 1.0).annotations
    assert [(a.id, a.label, a.box, a.crowd) for a in made] == [(a.id, a.label, a.box, a.crowd) for a in given]
    assert [a.segmentation is None for a in made] == [False, True, True, False]
    inside = LEFT.copy()
    inside[28:] = False  # the mask is a row or two longer than the box
    rle = made[0].rle(SIZE)
    assert rle is not None
    assert (mask_math.decode([rle], SIZE)[0] == inside).all()


def test_a_box_takes_the_object_of_its_class() -> None:
    names = Categories.of(["cat", "dog"])
    right = np.zeros(SIZE, bool)
    right[5:30, 6:26] = True
    record = Record("a", Path("a.png"), SIZE, [Annotation(1, 0, (5, 5, 25, 30)), Annotation(2, 1, (5, 5, 26, 30))])
    made = fill_boxes(record, _prediction([[5, 5, 25, 30], [6, 5, 26, 30]], [0, 1], [LEFT, right]), names, 1.0)
    cat, dog = (mask_math.decode([a.rle(SIZE)], SIZE)[0] for a in made.annotations)  # type: ignore[list-item]
    assert (cat == (right & (np.arange(60) < 25))).all()
    assert (dog == LEFT).all()


def test_boxes_stay_where_the_model_finds_nothing_or_no_masks() -> None:
    record = Record("a", Path("a.png"), SIZE, [Annotation(1, 0, (5, 5, 25, 30))])
    nothing = Prediction(META, Categories.of(["cat"]), Instances(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0)))
    boxes = Prediction(META, Categories.of(["cat"]), Instances(np.ones((1, 4)), np.zeros(1, int), np.ones(1)))
    for prediction in (nothing, boxes):
        assert fill_boxes(record, prediction, Categories.of(["cat"]), 0.9) is record
