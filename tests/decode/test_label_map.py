"""Label maps: from logits to original pixels, and to rows."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskkit.data.transforms import Resize, VerticalFlip, apply
from maskkit.decode import LabelMap, decode
from maskkit.decode import label_map as module
from maskkit.geometry.resample import strips
from maskkit.prediction import Categories, ImageMeta, Prediction
from maskkit.targets import Target

NAMES = Categories.of(("sky", "road", "car"))


def label_map(logits: torch.Tensor, meta: ImageMeta) -> np.ndarray:
    (prediction,) = decode(LabelMap(), {"logits": logits[None].numpy()}, [meta], NAMES)
    assert prediction.semantic is not None
    assert prediction.instances is None
    return prediction.semantic


@pytest.mark.parametrize("size", [(48, 64), (90, 31), (17, 23)])
def test_logits_are_interpolated_as_torch_does(size: tuple[int, int]) -> None:
    logits = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    affine = np.array([[size[1] / 64, 0, 0], [0, size[0] / 48, 0]])
    ours = label_map(logits, ImageMeta(1, "", size, (48, 64), affine))
    theirs = F.interpolate(logits[None], size=size, mode="bilinear")[0].argmax(0)
    assert (ours == theirs.numpy()).mean() > 0.999


@pytest.mark.parametrize("align_corners", [False, True])
def test_logits_may_go_by_way_of_the_input(align_corners: bool) -> None:
    """As mmsegmentation does: to the network's input, without its padding, and from there to the image."""
    logits = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    seen = (40, 60)  # of an input of 48 x 64
    meta = ImageMeta(1, "", (50, 90), (48, 64), np.array([[90 / 60, 0, 0], [0, 50 / 40, 0]]))
    (prediction,) = decode(LabelMap(True, align_corners), {"logits": logits[None].numpy()}, [meta], NAMES)
    theirs = F.interpolate(logits[None], size=(48, 64), mode="bilinear", align_corners=align_corners)
    theirs = theirs[..., : seen[0], : seen[1]]
    theirs = F.interpolate(theirs, size=(50, 90), mode="bilinear", align_corners=align_corners)[0].argmax(0)
    assert (prediction.semantic == theirs.numpy()).mean() > 0.999


def test_padding_and_mirrors_are_undone() -> None:
    """Logits of the transformed label map give the original label map back."""
    labels = torch.from_numpy(np.kron(np.random.default_rng(0).integers(0, 3, (5, 8)), np.ones((8, 8)))).to(torch.uint8)
    sample = (torch.zeros(3, 40, 64), Target.of([], [], semantic=labels), ImageMeta(1, "", (40, 64), (40, 64)))
    _, target, meta = apply([VerticalFlip(1.0), Resize((128, 128), "pad")], sample, np.random.default_rng(0))
    assert target.semantic is not None
    logits = F.one_hot(target.semantic.long().clamp(max=2), 3).permute(2, 0, 1).float()
    ours = label_map(logits, ImageMeta(1, "", meta.size, (128, 128), meta.affine))
    assert np.array_equal(ours, labels.numpy())


def test_a_large_image_is_done_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(1))
    meta = ImageMeta(1, "", (200, 100), (9, 9), np.array([[100 / 9, 0, 0], [0, 200 / 9, 0]]))
    whole = label_map(logits, meta)
    monkeypatch.setattr(module, "strips", partial(strips, values=1000))
    assert np.array_equal(label_map(logits, meta), whole)


def test_a_label_map_as_rows() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[10:, 5:] = 2
    prediction = Prediction(ImageMeta(7, "", (20, 30), (20, 30)), NAMES, semantic=labels)
    rows = prediction.to_coco()
    assert [r["category_id"] for r in rows] == [1, 3]
    assert all(r["image_id"] == 7 and r["segmentation"]["size"] == [20, 30] for r in rows)
