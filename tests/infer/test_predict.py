"""The prediction loop: sources of every kind, failures, order, evaluation mode."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit.data.shapes import CATEGORIES, draw, shapes_dataset
from maskkit.errors import DataError
from maskkit.infer.predict import Failure, predict_dataset, predict_images, read_source
from maskkit.prediction import Categories
from tests.small import masks, objects, small_config, small_model

INPUT = small_config().input
TWO = Categories.of(["disc", "ring"])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def image_path(tmp_path):
    image, _ = draw(1, (40, 60))
    path = tmp_path / "a.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


def test_every_kind_of_source_gives_the_same_prediction(model, image_path):
    pil = Image.open(image_path)
    array = np.asarray(pil)
    sources = [
        image_path,
        str(image_path),
        array,
        array.copy()[::-1][::-1],
        pil,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    rows = [p.to_coco() for p in predict_images(model, sources, INPUT, TWO)]
    assert rows[0], "the random model finds nothing, so this test would show nothing"
    for i, others in enumerate(rows, 1):
        assert others == [{**row, "image_id": i} for row in rows[0]]


def test_images_given_as_arrays_stay_with_their_prediction(model, image_path):
    array = np.asarray(Image.open(image_path))
    from_file, from_array = predict_images(model, [image_path, array], INPUT, TWO)
    assert from_file.image is None
    assert from_file.meta.path == str(image_path)
    np.testing.assert_array_equal(from_array.image, array)


def test_result_is_in_the_pixels_of_the_image(model):
    found = next(predict_images(model, [np.full((35, 90, 3), 80, np.uint8)], INPUT, TWO))
    assert masks(found).size == (35, 90)
    assert (objects(found).boxes >= 0).all()
    assert (objects(found).boxes <= [90, 35, 90, 35]).all()


def test_pil_images_are_turned_as_their_exif_says(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_source(Image.open(path)).shape == (3, 20, 10)
    assert read_source(path).shape == (3, 20, 10)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(3, 4, 4),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        Image.new("I;16", (4, 4)),
        Image.new("F", (4, 4)),
    ],
    ids=["grey", "alpha", "float", "empty", "float tensor", "channels last tensor", "16 bit PIL", "float PIL"],
)
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(DataError, match="convert it"):
        read_source(bad)


def test_a_bad_image_is_reported_and_the_others_go_on(model, image_path, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is not an image")
    failures: list[Failure] = []
    sources = [image_path, broken, tmp_path / "missing.png", image_path, np.zeros((2, 2), np.uint8)]
    found = list(predict_images(model, sources, INPUT, TWO, batch=2, failed=failures.append))
    assert [p.meta.image_id for p in found] == [1, 4]
    assert [f.path for f in failures] == [str(broken), str(tmp_path / "missing.png"), "image 5"]
    assert str(broken) in str(failures[0].error)


def test_without_a_listener_a_bad_image_raises(model, image_path, tmp_path):
    found = predict_images(model, [image_path, tmp_path / "missing.png"], INPUT, TWO)
    assert next(found).meta.path == str(image_path)
    with pytest.raises(DataError, match=r"missing\.png"):
        next(found)


def test_batches_change_nothing(model):
    data = shapes_dataset(5, size=(48, 56), objects=(1, 3))
    alone = list(predict_dataset(model, data, INPUT, CATEGORIES))
    together = list(predict_dataset(model, data, INPUT, CATEGORIES, batch=3))
    assert [p.meta.image_id for p in together] == [1, 2, 3, 4, 5]
    for a, b in zip(alone, together, strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(objects(a).scores, objects(b).scores, atol=1e-5)
        np.testing.assert_allclose(objects(a).boxes, objects(b).boxes, atol=1e-2)


def test_score_cuts_and_progress_counts(model):
    data = shapes_dataset(3, size=(48, 56))
    everything = [s for p in predict_dataset(model, data, INPUT, CATEGORIES) for s in objects(p).scores]
    cut = float(np.median(everything))
    done: list[int] = []
    kept = [
        s
        for p in predict_dataset(model, data, INPUT, CATEGORIES, batch=2, score=cut, progress=done.append)
        for s in objects(p).scores
    ]
    assert kept == pytest.approx([s for s in everything if s > cut], abs=1e-5)
    assert done == [2, 1]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_given_back(model, training):
    model.train(training)
    modes = [model.training for _ in predict_dataset(model, shapes_dataset(2, size=(32, 32)), INPUT, CATEGORIES)]
    assert modes == [False, False]
    assert model.training is training
    model.eval()


def test_prediction_leaves_the_model_trainable(model):
    """What the network makes in inference mode must not stay in it."""
    list(predict_dataset(model, shapes_dataset(1, size=(32, 32)), INPUT, CATEGORIES))
    raw = model(torch.zeros(1, 3, 64, 64))
    torch.stack([t.float().sum() for t in raw if t.requires_grad]).sum().backward()


def test_no_images_no_predictions(model):
    assert list(predict_images(model, [], INPUT, TWO)) == []
