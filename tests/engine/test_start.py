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
    check_same(replace(tiny, train=replace(tiny.train, workers=7, save_every=9, log=("wandb",))), CLASSES, 12, path)
    other = replace(tiny, train=replace(tiny.train, lr=0.5), input=replace(tiny.input, size=(32, 64)))
    with pytest.raises(MaskkitError) as caught:
        check_same(other, Categories.of(["cat"]), 13, path)
    message = str(caught.value)
    assert "train.lr was 0.02 and is 0.5" in message
    assert "input.size was [64, 64] and is [32, 64]" in message
    assert "classes was ['cat', 'dog', 'cow'] and is ['cat']" in message
    assert "training images was 12 and is 13" in message
    assert "train.workers" not in message


def test_a_run_that_has_ended_may_be_made_longer(tmp_path, model, tiny):
    def of(**settings):
        return replace(tiny, train=replace(tiny.train, **settings))

    path = tmp_path / "last.safetensors"
    ended = of(steps=None, epochs=4.0)
    save_model(path, model, ended, CLASSES, {"step": 12, "images": 12})
    assert check_same(ended, CLASSES, 12, path) == []
    (line,) = check_same(of(steps=None, epochs=6.0), CLASSES, 12, path)
    assert "ended after step 12 and goes on to step 18" in line
    assert "to step 20:" in check_same(of(steps=20), CLASSES, 12, path)[0]
    for shorter in (of(steps=None, epochs=3.0), of(steps=11), of(steps=None, epochs=6.0, minutes=5.0)):
        with pytest.raises(
            MaskkitError, match=r"train.*was.*epochs and steps may grow once a run has ended|minutes was"
        ):
            check_same(shorter, CLASSES, 12, path)
    with pytest.raises(MaskkitError, match=r"train.lr was 0.02 and is 0.5; use the former"):
        check_same(of(steps=None, epochs=6.0, lr=0.5), CLASSES, 12, path)
    save_model(path, model, ended, CLASSES, {"step": 11, "images": 12})
    with pytest.raises(
        MaskkitError, match=r"train.epochs was 4.0 and is 6.0 \(epochs and steps may grow once a run has"
    ):
        check_same(of(steps=None, epochs=6.0), CLASSES, 12, path)
