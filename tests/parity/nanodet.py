"""NanoDet-Plus: the official network with seeded weights, and ncnn's run of the published ones. Nothing is left out."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from maskkit import zoo
from maskkit.config import change
from maskkit.infer.preprocess import prepare
from maskkit.models.nanodet import NanoDet
from maskkit.nn.fcos import flatten
from maskkit.nn.nanodet import NanoDetRaw, extent
from maskkit.prediction import ImageMeta
from maskkit.zoo.nanodet import fold, rename, renamed
from tests.parity.goldens import Case

PRESET = zoo.preset("nanodet-plus-m-416")


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    for model, inputs in _models(case):
        for name, images in inputs.items():
            with torch.no_grad():
                features = model.backbone(images)
                levels = model.fpn([features[s] for s in (8, 16, 32)])
                raw = model(images)
                found = model.select(raw)
            for stage, stride in enumerate((8, 16, 32), 2):
                case.compare(f"{name}.backbone.stage{stage}", features[stride], *near)
            for i, level in enumerate(levels):
                case.compare(f"{name}.fpn.{i}", level, *near)
            case.compare(f"{name}.raw", _official_order(raw), *near)
            if f"{name}.boxes" in case.outputs:
                assert torch.equal(found.labels[0], torch.from_numpy(case.stored(f"{name}.labels")).long())
                case.compare(f"{name}.scores", found.scores[0], 0, case.manifest["tolerance"]["scores"])
                case.compare(f"{name}.boxes", found.boxes[0] * extent(raw), 0, case.manifest["tolerance"]["boxes"])
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _models(case: Case) -> Iterator[tuple[NanoDet, dict[str, Tensor]]]:
    """Seeded weights with batch norm as it is, and folded; published weights, where it is folded already."""
    if "weights_file" not in case.manifest:
        image = case.recipe.seeded_image(*case.numbers_in(case.manifest["inputs"])[:2], case.seed)
        images = {"image": _normalised(image)}
        yield _filled(renamed(case.weights()), batch_norm=True), images
        yield _filled(fold(renamed(case.weights())), batch_norm=False), images
        return
    named = case.manifest["weights_file"].split(",")[0]
    file = case.path.parents[1] / named
    assert hashlib.sha256(file.read_bytes()).hexdigest() in case.manifest["weights_file"]
    noise = case.recipe.seeded_array("input", (1, 3, 320, 416), case.seed)
    inputs = {"random": torch.from_numpy(noise).flip(1)}  # their order of colours
    for name, digest in case.manifest["sha256_of_resized_rgb"].items():
        image = getattr(skimage.data, name)()
        resized = np.asarray(Image.fromarray(image).resize((416, 416), Image.Resampling.BILINEAR))
        assert hashlib.sha256(resized.tobytes()).hexdigest() == digest
        inputs[name] = _normalised(image)
    yield _filled(rename(load_file(file)), batch_norm=False), inputs


def _filled(state: dict[str, Tensor], batch_norm: bool) -> NanoDet:
    model = NanoDet(change(PRESET.model, detector={"batch_norm": batch_norm}))  # type: ignore[arg-type]
    model.load_state_dict(state)
    return model.eval()


def _normalised(image: np.ndarray) -> Tensor:
    """As every runtime prepares an image: seeded ones at their own size, photographs at the preset's."""
    size = (image.shape[0], image.shape[1])
    own = size if size == (224, 288) else PRESET.input.size
    prepared = prepare(image, ImageMeta(0, "", size, size), change(PRESET.input, size=own))
    return torch.from_numpy(prepared.image).permute(2, 0, 1)[None]


def _official_order(raw: NanoDetRaw) -> Tensor:
    """Classes and sides of all locations, (1, P, 112)."""
    return torch.cat([flatten(raw.logits), flatten(raw.sides)], 2)
