"""The tutorial: a drawn image from file to AP, one line per step, with shapes (``pytest -s tests/test_story.py``)."""

from pathlib import Path

import numpy as np
import torch

import maskkit
from maskkit.data import open_dataset, shapes
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, train_ops
from maskkit.decode import decode
from maskkit.engine.optim import make_optimizer
from maskkit.eval.instance.metric import evaluate
from maskkit.eval.numbers import rank
from maskkit.infer.predict import Predictor
from maskkit.infer.preprocess import prepare, stack
from maskkit.infer.sources import dataset_images
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.zoo import preset


def test_one_image_from_jpeg_to_ap(tmp_path: Path) -> None:
    """The table of docs/architecture.md; the loop around the steps gives the same."""
    recipe = preset("yolact-mobilenetv2-256")
    data = open_dataset(shapes.write(tmp_path, train=1, val=1), "val")
    model = maskkit.create_model(recipe.name, num_classes=len(data.categories))

    (item,) = dataset_images(data)
    pixels, meta = item.read(recipe.input)  # read
    print("pixels", pixels.shape, pixels.dtype)
    inputs = stack([prepare(pixels, meta, recipe.input)], recipe.input)  # preprocess
    print("images", inputs.images.shape, inputs.images.dtype, "sizes", inputs.sizes.tolist())
    runtime = TorchRuntime(model)
    arrays = runtime.run(inputs.images, inputs.sizes)  # forward, select
    print("outputs", {name: array.shape for name, array in arrays.items()})
    (prediction,) = decode(model.decoder, arrays, inputs.metas, data.categories)  # decode
    print(prediction)
    result = evaluate(prediction.to_coco(), data.truth())  # evaluate
    print("metric", result.main)

    assert 0 <= rank(result.main["AP"]) <= 1
    (same,) = Predictor(runtime, model.decoder, recipe.input, data.categories).dataset(data)
    assert same.to_coco() == prediction.to_coco()


def test_a_training_step_and_its_metric(tmp_path: Path) -> None:
    """The eight steps of docs/explanation/eight_steps.md."""
    recipe = preset("yolact-mobilenetv2-256")
    folder = shapes.write(tmp_path, train=1, val=1)

    data = open_dataset(folder, "train")  # 1 index
    image, target, meta = data.load(0)  # 1 decode
    print("image", tuple(image.shape), image.dtype, "boxes", tuple(target.boxes.shape), target.masks)
    ops = train_ops(recipe.augment, recipe.input)
    image, target, meta = apply(ops, (image, target, meta), np.random.default_rng(0))  # 2 augment
    print("augmented", tuple(image.shape), "objects", len(target), "input -> original", meta.affine.round(2).tolist())
    batch = collate([(image, target, meta)], recipe.input)  # 3 collate
    print("batch", tuple(batch.images.shape), batch.images.dtype)
    model = maskkit.create_model(recipe.name, num_classes=len(data.categories))
    raw = model(batch.images)  # 4 forward
    print("raw", {name: tuple(tensor.shape) for name, tensor in raw._asdict().items()})
    losses = model.loss(raw, batch)  # 5 loss
    print("loss", {name: round(value.item(), 3) for name, value in losses.items()})
    optimizer = make_optimizer(model, recipe.train)
    torch.stack(list(losses.values())).sum().backward()  # 6 step
    optimizer.step()
    prediction = model.eval().decode(model(batch.images), batch.metas, data.categories)[0]  # 7 decode
    print(
        "prediction",
        len(prediction),
        "objects in original pixels,",
        prediction.instances and prediction.instances.masks,
    )
    result = evaluate(prediction.to_coco(), data.coco())  # 8 metric
    print("metric", result.main)

    assert np.isfinite([value.item() for value in losses.values()]).all()
    assert meta.size == (256, 256)
    assert 0 <= rank(result.main["AP"]) <= 1
