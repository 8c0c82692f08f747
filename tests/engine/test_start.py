"""Whether a run may continue from the checkpoint in its folder."""

from dataclasses import replace

import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.engine.start import check_same
from maskkit.errors import MaskkitError
from maskkit.prediction import Categories

CLASSES = Categories(("cat", "dog", "cow"), (3, 17, 4))


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return zoo.model_class("tinynet")(tiny.model)


def test_another_run_is_not_gone_on_with_and_every_difference_is_named(tmp_path, model, tiny):
    path = tmp_path / "last.safetensors"
    save_model(path, model, tiny, CLASSES, {"step": 3, "images": 12})
    check_same(tiny, CLASSES, 12, path)
    check_same(replace(tiny, train=replace(tiny.train, workers=7, save_every=9)), CLASSES, 12, path)
    other = replace(tiny, train=replace(tiny.train, lr=0.5), input=replace(tiny.input, size=(32, 64)))
    with pytest.raises(MaskkitError) as caught:
        check_same(other, Categories.of(["cat"]), 13, path)
    message = str(caught.value)
    assert "train.lr was 0.02 and is 0.5" in message
    assert "input.size was [64, 64] and is [32, 64]" in message
    assert "classes was ['cat', 'dog', 'cow'] and is ['cat']" in message
    assert "training images was 12 and is 13" in message
    assert "train.workers" not in message
