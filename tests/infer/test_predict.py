"""The prediction loop: sources of every kind, failures, order, evaluation mode."""

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit.data import open_dataset
from maskkit.data.shapes import CATEGORIES, draw, shapes_dataset, write
from maskkit.errors import DataError, MaskkitError
from maskkit.infer.predict import Failure
from maskkit.infer.sources import loose_images, read_source
from maskkit.infer.torch_runtime import TorchRuntime, predictor
from maskkit.prediction import Categories
from tests.small import masks, objects, small_config, small_model

INPUT = small_config().input
TWO = Categories.of(["disc", "ring"])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def image_path(tmp_path):
    drawn, _ = draw(1, (40, 60))
    path = tmp_path / "a.png"
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(path)
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
    rows = [p.to_coco() for p in predictor(model, INPUT, TWO).images(sources)]
    assert rows[0], "the random model finds nothing, so this test would show nothing"
    for i, others in enumerate(rows, 1):
        assert others == [{**row, "image_id": i} for row in rows[0]]


def test_images_given_as_arrays_stay_with_their_prediction(model, image_path):
    array = np.asarray(Image.open(image_path))
    from_file, from_array = predictor(model, INPUT, TWO).images([image_path, array])
    assert from_file.image is None
    assert from_file.meta.path == str(image_path)
    np.testing.assert_array_equal(from_array.image, array)


def test_result_is_in_the_pixels_of_the_image(model):
    found = next(predictor(model, INPUT, TWO).images([np.full((35, 90, 3), 80, np.uint8)]))
    assert masks(found).size == (35, 90)
    assert (objects(found).boxes >= 0).all()
    assert (objects(found).boxes <= [90, 35, 90, 35]).all()


def test_pil_images_are_turned_as_their_exif_says(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_source(Image.open(path))[0].shape == (20, 10, 3)
    assert read_source(path)[0].shape == (20, 10, 3)


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
    found = list(predictor(model, INPUT, TWO).images(sources, batch=2, failed=failures.append))
    assert [p.meta.image_id for p in found] == [1, 4]
    assert [f.path for f in failures] == [str(broken), str(tmp_path / "missing.png"), "image 5"]
    assert str(broken) in str(failures[0].error)


def test_without_a_listener_a_bad_image_raises(model, image_path, tmp_path):
    found = predictor(model, INPUT, TWO).images([image_path, tmp_path / "missing.png"])
    assert next(found).meta.path == str(image_path)
    with pytest.raises(DataError, match=r"missing\.png"):
        next(found)


def test_batches_change_nothing(model):
    data = shapes_dataset(5, size=(48, 56), objects=(1, 3))
    alone = list(predictor(model, INPUT, CATEGORIES).dataset(data))
    together = list(predictor(model, INPUT, CATEGORIES).dataset(data, batch=3))
    assert [p.meta.image_id for p in together] == [1, 2, 3, 4, 5]
    for a, b in zip(alone, together, strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(objects(a).scores, objects(b).scores, atol=1e-5)
        np.testing.assert_allclose(objects(a).boxes, objects(b).boxes, atol=1e-2)


def test_threads_that_read_ahead_change_nothing(model, image_path, tmp_path):
    data = shapes_dataset(7, size=(48, 56), objects=(1, 3))
    found = predictor(model, INPUT, CATEGORIES)
    plain, threaded = ([p.to_coco() for p in found.dataset(data, batch=2, workers=n)] for n in (0, 3))
    assert plain == threaded
    items = list(loose_images([image_path, tmp_path / "missing.png", image_path, tmp_path / "gone.png"]))
    failures: list[Failure] = []
    assert [p.meta.image_id for p in found.predict(items, workers=2, failed=failures.append)] == [1, 3]
    assert [Path(f.path).name for f in failures] == ["missing.png", "gone.png"]
    with pytest.raises(DataError, match=r"missing\.png"):
        list(found.predict(items, workers=2))


def test_several_forward_passes_at_a_time_change_nothing(image_path, tmp_path):
    data = shapes_dataset(7, size=(48, 56), objects=(1, 3))
    plain = predictor(small_model().eval(), INPUT, CATEGORIES, "cpu", fold=True)
    expected = [p.to_coco() for p in plain.dataset(data, batch=2)]
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    class Counted(TorchRuntime):
        def run(self, images, sizes):
            nonlocal running, most
            with lock:
                running, most = running + 1, max(most, running + 1)
            if not together.broken:
                with suppress(threading.BrokenBarrierError):
                    together.wait(2 if most < 3 else 0)
            found = super().run(images, sizes)
            with lock:
                running -= 1
            return found

    runtime = Counted(small_model().eval(), "cpu", fold=True)
    found = replace(plain, runtime=runtime, streams=3)
    assert [p.to_coco() for p in found.dataset(data, batch=2)] == expected
    assert most == 3
    before = threading.active_count()
    items = list(loose_images([image_path, image_path, tmp_path / "missing.png", image_path]))
    some = found.predict(items)
    assert [next(some).meta.image_id, next(some).meta.image_id] == [1, 2], "what comes before an error is not lost"
    with pytest.raises(DataError, match=r"missing\.png"):
        next(some)
    assert threading.active_count() == before


def test_an_error_of_the_network_comes_in_its_place(image_path):
    class Fails:
        def run(self, images, sizes):
            raise MaskkitError("the network fails")

    found = replace(predictor(small_model(), INPUT, TWO), runtime=Fails(), streams=2)
    with pytest.raises(MaskkitError, match="the network fails"):
        list(found.images([image_path] * 3))


def test_score_cuts(model):
    data = shapes_dataset(3, size=(48, 56))
    everything = [s for p in predictor(model, INPUT, CATEGORIES).dataset(data) for s in objects(p).scores]
    cut = float(np.median(everything))
    kept = [s for p in predictor(model, INPUT, CATEGORIES).dataset(data, batch=2, score=cut) for s in objects(p).scores]
    assert kept == pytest.approx([s for s in everything if s > cut], abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_given_back(model, training):
    model.train(training)
    modes = []
    hook = model.register_forward_hook(lambda *_: modes.append(model.training))
    found = predictor(model, INPUT, CATEGORIES).dataset(shapes_dataset(2, size=(32, 32)))
    next(found)
    assert model.training is training, "also where nobody asks for the rest"
    next(found)
    hook.remove()
    assert modes == [False, False]
    assert model.training is training
    model.eval()


def test_prediction_leaves_the_model_trainable(model):
    """What the network makes in inference mode must not stay in it."""
    list(predictor(model, INPUT, CATEGORIES).dataset(shapes_dataset(1, size=(32, 32))))
    raw = model(torch.zeros(1, 3, 64, 64))
    torch.stack([t.float().sum() for t in raw if t.requires_grad]).sum().backward()


def test_no_images_no_predictions(model):
    assert list(predictor(model, INPUT, TWO).images([])) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_all_images_in_order(model, workers):
    dataset = shapes_dataset(11, size=(48, 64), objects=(0, 4))
    found = list(predictor(model, INPUT, TWO).dataset(dataset, batch=4, workers=workers))
    assert [p.meta.image_id for p in found] == list(range(1, 12))
    height, width = INPUT.size
    for prediction in found:
        np.testing.assert_allclose(prediction.meta.affine, [[64 / width, 0, 0], [0, 48 / height, 0]])
    assert list(predictor(model, INPUT, TWO).dataset(dataset.subset([]), batch=4, workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_of_a_data_set_is_one_clear_error(model, tmp_path, workers):
    folder = write(tmp_path / "drawn", train=4, val=1, size=(32, 32))
    bad = folder / "images" / "00003.jpg"
    dataset = open_dataset(folder, "train")
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=r"00003\.jpg") as caught:
        list(predictor(model, INPUT, TWO).dataset(dataset, batch=2, workers=workers))
    assert "Traceback" not in str(caught.value)
