"""What users import: create_model, load, Segmenter."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import maskkit
from maskkit.api import Segmenter, configure, create_model, load
from maskkit.checkpoints import find
from maskkit.config import change
from maskkit.data import shapes
from maskkit.data.dataset import Dataset
from maskkit.data.loader import collate
from maskkit.data.shapes import shapes_dataset
from maskkit.data.transforms import apply, eval_ops
from maskkit.engine.optim import make_optimizer
from maskkit.errors import DataError, MaskkitError
from maskkit.infer.predict import Predictor
from maskkit.infer.torch_runtime import TorchRuntime, predictor
from maskkit.prediction import Categories
from maskkit.zoo import preset
from maskkit.zoo.class_names import COCO, VOC
from tests.small import PRESET, SECTIONS, objects, save_small, small_config, small_model

INPUT = small_config().input
FIVE = ("disc", "ring", "square", "star", "pair")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def segmenter(checkpoint):
    return load(checkpoint, device="cpu")


@pytest.fixture
def image_path(tmp_path):
    drawn, _ = shapes.draw(3, (50, 70))
    path = tmp_path / "drawn.png"
    Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(path)
    return path


def test_create_model_changes_what_is_asked_for():
    model = create_model(PRESET, 5, width=24)
    assert model.config == change(preset(PRESET).model, num_classes=5, width=24)
    with pytest.raises(TypeError, match="widht"):
        create_model(PRESET, widht=24)


def test_a_part_that_cannot_be_is_refused():
    with pytest.raises(TypeError, match="SegnetConfig has no field 'backbone'"):
        create_model("segnet-thin", backbone="no-such-net")
    with pytest.raises(TypeError, match="backbone is a BackboneConfig: change its fields by a mapping"):
        create_model(PRESET, backbone="no-such-net")
    with pytest.raises(TypeError, match="BackboneConfig has no field 'layers'"):
        create_model(PRESET, backbone={"layers": 50})
    with pytest.raises(MaskkitError, match=r"timm has no backbone 'no-such-net'.*timm.list_models"):
        create_model("yolact-resnet50", backbone={"name": "no-such-net"})


def test_create_model_touches_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    create_model("yolact-resnet50", 3)


@pytest.mark.parametrize("name", ["yolact-resnet5", "yolact", "yolo", "resnet50", ""])
def test_unknown_preset_names_near_ones(name):
    with pytest.raises(MaskkitError, match="there is no model") as error:
        create_model(name)
    if name.startswith("yolact-r"):
        assert "yolact-resnet50" in str(error.value)


def test_configure_changes_fields_of_sections():
    config = configure(PRESET, "pets", train={"epochs": 3.0}, augment={"flip": 0.0}, data={"labels": "boxes"})
    assert (config.data.train, config.data.labels) == ("pets", "boxes")
    assert (config.train.epochs, config.augment.flip) == (3.0, 0.0)
    assert config.model == configure(PRESET).model
    with pytest.raises(TypeError, match="epoch"):
        configure(PRESET, train={"epoch": 3})


def test_a_checkpoint_tells_all_that_is_needed(segmenter):
    assert segmenter.categories == Categories(("disc", "ring"), (7, 8))
    assert segmenter.input.size == (64, 64)
    assert segmenter.info["step"] == 3
    assert segmenter.decoder == segmenter.runtime.model.decoder
    assert segmenter.task.name == "instance"
    assert not segmenter.runtime.model.training
    assert segmenter.runtime.device.type == "cpu"


def test_loading_folds_without_changing_the_answer(segmenter, image_path):
    plain = next(predictor(small_model(), small_config().input, segmenter.categories).images([image_path]))
    folded = segmenter.predict(image_path, score=0.0)
    with segmenter.runtime.evaluating(torch.zeros(1, 3, 64, 64)) as network:
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.backbone.modules())
    assert len(plain) == len(folded) > 0
    np.testing.assert_allclose(objects(folded).scores, objects(plain).scores, atol=1e-4)


def test_a_loaded_model_trains_on(checkpoint, image_path):
    segmenter = load(checkpoint, device="cpu")
    before = segmenter.predict(image_path, score=0.0)
    runtime = segmenter.runtime
    assert isinstance(runtime, TorchRuntime)
    model = runtime.model.train()
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    data = shapes_dataset(2, size=(64, 64)).only([0, 1])
    batch = collate([apply(eval_ops(segmenter.input), data.load(i), np.random.default_rng(0)) for i in range(2)], INPUT)
    optimizer = make_optimizer(model, replace(small_config().train, lr=0.05))
    weights = {n: p.clone() for n, p in model.named_parameters()}
    losses = model.loss(model(batch.images, batch.sizes, batch.targets), batch)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    assert all((p != weights[n]).any() for n, p in model.named_parameters() if p.grad is not None and p.grad.any())
    after = segmenter.predict(image_path, score=0.0)
    fresh = next(predictor(model, segmenter.input, segmenter.categories).images([image_path]))
    assert len(after) == len(fresh)
    np.testing.assert_allclose(objects(after).scores, objects(fresh).scores, atol=1e-4)
    assert len(before) != len(after) or (objects(before).scores != objects(after).scores).any(), "it has learnt"


def test_predict_cuts_at_the_score(segmenter, image_path):
    scores = objects(segmenter.predict(image_path, score=0.0)).scores
    cut = float(np.median(scores))
    assert len(segmenter.predict(image_path, score=cut)) == (scores > cut).sum() > 0
    assert (objects(segmenter.predict(image_path)).scores > 0.3).all()


def test_prediction_draws_itself(segmenter, image_path, tmp_path):
    found = segmenter.predict(Image.open(image_path), score=0.0)
    drawn = np.asarray(Image.open(found.save(tmp_path / "overlay.png")))
    assert drawn.shape == (50, 70, 3)
    assert {row["category_id"] for row in found.to_coco()} <= {7, 8}


def test_predict_many(segmenter, image_path, tmp_path):
    failures = []
    sources = [image_path, tmp_path / "missing.jpg", image_path]
    found = segmenter.predict_many(sources, 0.0, batch=2, failed=failures.append)
    assert [p.meta.image_id for p in found] == [1, 3]
    assert len(failures) == 1
    with pytest.raises(DataError, match=r"missing\.jpg"):
        segmenter.predict(tmp_path / "missing.jpg")


@pytest.mark.parametrize("source", ["nowhere.safetensors", PRESET, "."])
def test_load_says_what_is_missing(source):
    with pytest.raises(DataError, match=r"there is no such weight file|^\.: is a folder") as error:
        load(source)
    assert ("train it first" in str(error.value)) == (source == PRESET)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights at all")
    with pytest.raises(DataError, match=r"weights\.safetensors"):
        load(path)


def test_built_in_is_a_name(checkpoint, monkeypatch):
    monkeypatch.setattr(find, "BUILT_IN_WEIGHTS", checkpoint)
    assert maskkit.load("built-in").categories.names == ("disc", "ring")
    assert maskkit.load().categories.names == ("disc", "ring")


def test_many_images_share_the_cores(checkpoint, image_path):
    before = torch.get_num_threads()
    try:
        plain, several = load(checkpoint, "cpu", 1), load(checkpoint, "cpu", 6, throughput=True)
        assert (plain.predictor.streams, several.predictor.streams, torch.get_num_threads()) == (1, 4, 1)
        expected, found = ([p.to_coco() for p in s.predict_many([image_path] * 9, 0)] for s in (plain, several))
        assert found == expected
        assert [row["image_id"] for row in found[-1]] == [9] * len(found[-1]) != []
    finally:
        torch.set_num_threads(before)


def perfect(monkeypatch, segmenter: Segmenter, data: Dataset) -> None:
    """Let the model find exactly the objects of ``data`` that have its classes."""
    from maskkit.prediction import Instances, Masks

    predict = Predictor.dataset
    truth = {r.image_id: r for r in data.records}
    number = {name: i for i, name in enumerate(segmenter.categories.names)}

    def find(*args, **options):
        for index, prediction in enumerate(predict(*args, **options)):
            _, target, _ = data.load(index)
            names = [data.categories.names[a.label] for a in truth[prediction.meta.image_id].annotations]
            kept = np.array([i for i, name in enumerate(names) if name in number], int)
            labels = np.array([number[names[i]] for i in kept], int)
            assert target.masks is not None
            boxes = target.boxes.numpy()[kept]
            masks = Masks(target.masks.size, target.masks[kept].rle())
            prediction.instances = Instances(boxes, labels, np.ones(len(kept), np.float32), masks)
            yield prediction

    monkeypatch.setattr(Predictor, "dataset", find)


def test_evaluate_counts_shared_classes_alone(segmenter, monkeypatch):
    data = shapes_dataset(4, size=(64, 64))
    perfect(monkeypatch, segmenter, data)
    result = segmenter.evaluate(data)
    assert result.main["AP"] == pytest.approx(1)
    assert result.kind == "segm"
    assert set(result.per_class) == {"disc", "ring"}


def test_evaluate_opens_the_validation_part(segmenter, tmp_path, monkeypatch):
    shapes.write(tmp_path, train=3, val=2, size=(64, 64))
    seen = []
    detect = Segmenter.detect
    monkeypatch.setattr(Segmenter, "detect", lambda self, data, *a: seen.append(len(data)) or detect(self, data, *a))
    result = segmenter.evaluate(tmp_path, batch=2)
    assert seen == [2]
    assert 0 <= result.main["AP"] < 0.5


def test_evaluate_takes_all_where_there_is_no_validation_part(segmenter, tmp_path):
    shapes.write(tmp_path, train=3, val=2, size=(64, 64))
    (tmp_path / "val.json").unlink()
    assert segmenter.evaluate(tmp_path, batch=3).bbox is not None


def test_train_comes_back_with_the_best_weights(tmp_path):
    data = shapes.write(tmp_path / "shapes", train=4, val=2, size=(64, 64), objects=(1, 2))
    short = {"steps": 2, "batch": 2, "workers": 0, "warmup": 1}
    trained = Segmenter.train(PRESET, data, tmp_path / "run", train=short, model={"width": 16}, input=SECTIONS["input"])
    assert trained.categories.names == FIVE
    assert trained.input.size == (64, 64)
    assert trained.info["step"] == 2
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_names_of_coco_and_voc():
    assert (len(COCO), COCO.ids[0], COCO.ids[-1]) == (80, 1, 90)
    assert COCO.names[COCO.index(18)] == "dog"
    assert COCO.names[COCO.index(90)] == "toothbrush"
    assert (len(VOC), VOC.names[14]) == (20, "person")


def test_encoded_images_are_images(segmenter, image_path):
    rows = segmenter.predict(image_path, score=0).to_coco()
    assert rows
    content = image_path.read_bytes()
    with open(image_path, "rb") as file:
        for source in (content, bytearray(content), io.BytesIO(content), file):
            found = segmenter.predict(source, score=0)
            assert found.to_coco() == rows
            assert found.image is not None, "it can be drawn"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (["a.jpg", "b.jpg"], "predict takes one image, not a list; give its images to predict_many"),
        (("a.jpg",), "not a tuple"),
        (b"no image", "the encoded image: not an image"),
        (b"", "not an image"),
        (io.BytesIO(b"\xff\xd8\xff"), "the encoded image: damaged or unreadable|not an image"),
        ("https://example.org/cat.jpg", "is an address, and maskkit downloads no images"),
        ("S3://bucket/cat.jpg", "is an address"),
        (None, "not NoneType"),
        (3, "not int"),
        ({"image": 1}, "not a dict"),
    ],
)
def test_what_is_no_image_is_one_clear_line(segmenter, source, said):
    with pytest.raises(DataError, match=said) as caught:
        segmenter.predict(source)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_image(segmenter, tmp_path):
    with pytest.raises(DataError, match="is a folder, not an image; predict its images with predict_many"):
        segmenter.predict(tmp_path)


@pytest.mark.parametrize("source", ["a.jpg", b"abc"])
def test_predict_many_takes_many(segmenter, source):
    with pytest.raises(DataError, match="put the image into a list"):
        segmenter.predict_many(source)


def test_texts_of_a_segmenter(segmenter):
    text = repr(segmenter)
    assert "2 classes: disc, ring" in text
    assert "input 64 x 64" in text
    assert len(text) < 200


def test_the_score_threshold_is_that_of_the_checkpoint_unless_another_is_given(segmenter, image_path):
    everything = objects(segmenter.predict(image_path, 0.0)).scores
    assert segmenter.score == 0.3
    for chosen, used in (
        (0.0, 0.0),
        (float(everything[1]), everything[1]),
        (1, 1),
        ("x", 0.3),
        (2.0, 0.3),
        (None, 0.3),
    ):
        mine = replace(segmenter, info={"score": chosen})
        assert mine.score == pytest.approx(used)
        assert len(objects(mine.predict(image_path))) == (everything > used).sum()
        assert len(objects(mine.predict(image_path, 0.0))) == len(everything)


def test_the_built_in_model_has_a_threshold():
    assert load().score == pytest.approx(0.391, abs=1e-3)
