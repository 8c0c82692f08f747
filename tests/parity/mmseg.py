"""FCN, PSPNet, DeepLab v3 and v3+ and Mask2Former of mmsegmentation's zoo, from its names to its label maps."""

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.config import InputConfig, Tta
from maskkit.data.loader import normalise
from maskkit.decode import LabelMap
from maskkit.decode.grid import in_two_steps
from maskkit.decode.outputs import ClassLogits
from maskkit.infer.torch_runtime import TorchRuntime, TtaRuntime
from maskkit.models.base import Model
from maskkit.models.mask2former import Mask2Former
from maskkit.prediction import Categories, ImageMeta
from maskkit.zoo.card import Preset
from tests.parity.goldens import Case, watched

_LAYERS = {
    "fcn": {"head.convs": "score.convs"},
    "pspnet": {"head.bottleneck": "score.2"},
    "deeplabv3": {"head.bottleneck": "aspp.project"},
    "deeplabv3plus": {
        "head.bottleneck": "aspp.project",
        "head.c1_bottleneck": "low",
        "head.sep_bottleneck": "refine.1",
    },
}
"""Ours for the layers that the cases store."""


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = case.path.name
    if name.startswith("mask2former"):
        (_queries_postprocess if name.endswith("_postprocess") else _queries)(case)
    else:
        (_slide if name.endswith("_slide") else _forward)(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def preset_of(case: Case) -> Preset:
    """The preset for a case such as ``deeplabv3plus_r50_d8_cityscapes769_forward``."""
    m = re.fullmatch(r"(\w+)_r(\d+)_d8_([a-z0-9]+?)(769)?_\w+", case.path.name)
    if m is None:
        m = re.fullmatch(r"(mask2former)_r(\d+)_([a-z0-9]+)()_\w+", case.path.name)
    assert m is not None
    crop = "-769" if m[4] else ""
    return zoo.preset(f"{m[1]}-resnet{m[2]}-{m[3]}-mmseg{crop}")


def check(case: Case, name: str, ours: Tensor | np.ndarray) -> None:
    tolerance = case.manifest["tolerance"]
    case.compare(name, ours, tolerance["rtol"], tolerance["atol"])


def check_classes(case: Case, name: str, ours: np.ndarray) -> None:
    same = case.part(name, ours) == case.stored(name).reshape(-1)
    assert same.mean() >= 0.999, f"{name}: {(~same).sum()} of {same.size} pixels have another class"


def build(case: Case) -> tuple[Preset, Model]:
    preset = preset_of(case)
    return preset, case.filled(preset.name)


def given(case: Case, input: InputConfig) -> tuple[Tensor, ImageMeta]:
    """The image of a case, normalised, and its geometry: it stands for one of ``ori_shape``."""
    described = case.manifest["input"]
    height, width = described["image_hw"]
    pixels = case.recipe.seeded_image(height, width, case.seed)
    images = normalise(torch.from_numpy(pixels).permute(2, 0, 1), input)[None]
    down, right = described["input_hw"]
    images = F.pad(images, [0, right - width, 0, down - height])
    return images, meta_of(described["ori_shape"], (height, width), (down, right))


def meta_of(original: list[int], inside: tuple[int, int], padded: tuple[int, int]) -> ImageMeta:
    """Of an image of size ``original`` (H, W) that fills ``inside`` of an input ``padded`` to its size."""
    affine = np.diag([original[1] / inside[1], original[0] / inside[0], 1.0])
    return ImageMeta(1, "", (original[0], original[1]), padded, affine)


def _forward(case: Case) -> None:
    preset, model = build(case)
    images, meta = given(case, preset.input)
    assert isinstance(model.decoder, LabelMap)
    corners = model.decoder.align_corners
    seen: dict[str, Tensor] = {}
    layers = {f"backbone.c{i + 1}": f"backbone.body.layer{i}" for i in range(1, 5)}
    layers |= _LAYERS[preset.name.partition("-")[0]]
    for key, layer in layers.items():
        model.get_submodule(layer).register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    with torch.no_grad():
        raw = model(images)
        out = model.select(raw)
    check(case, "input", images)
    for key, value in seen.items():
        check(case, key, value)
    check(case, "logits_low", raw.logits)
    check(case, "aux_low", raw.others[0])
    size = images.shape[2:]
    check(case, "logits", F.interpolate(out.logits, size=size, mode="bilinear", align_corners=corners))
    check_labels(case, out.logits, model.decoder, meta)


def check_labels(case: Case, logits: Tensor, decoder: LabelMap, meta: ImageMeta) -> None:
    """Logits at the original pixels, and their classes."""
    arrays = logits[0].float().numpy()
    if "final.logits" in case.outputs:
        strips = [part for _, part in in_two_steps(arrays, meta, decoder.align_corners)]
        check(case, "final.logits", np.concatenate(strips, 1))
    classes = Categories.of((), [str(i) for i in range(len(arrays))])
    found = decoder(ClassLogits(arrays), meta, classes).semantic
    assert found is not None
    check_classes(case, "final.classes", found)


def _slide(case: Case) -> None:
    preset, model = build(case)
    images, meta = given(case, preset.input)
    test = case.config["model"]["test_cfg"]
    window, stride = tuple(test["crop_size"]), test["stride"][0]
    assert stride == test["stride"][1]
    tta = Tta(window=window, overlap=1 - stride / window[0], average="logits")
    runtime = TtaRuntime(TorchRuntime(model), preset.input, tta)
    logits = torch.from_numpy(runtime.run(images.numpy(), np.array([images.shape[2:]]))["logits"])
    check(case, "logits", logits)
    assert isinstance(model.decoder, LabelMap)
    check_labels(case, logits, model.decoder, meta)


def _queries(case: Case) -> None:
    preset, model = build(case)
    assert isinstance(model, Mask2Former)
    images, meta = given(case, preset.input)
    with torch.no_grad(), watched(model.backbone) as seen:
        raw = model(images)
        out = model.select(raw)
    (stages,) = seen
    assert isinstance(out, ClassLogits)
    check(case, "input", images)
    for i, stage in enumerate(stages.values(), 2):
        nearly(case, f"backbone.c{i}", stage)
    nearly(case, "pred_logits", raw.logits[:, -1])
    nearly(case, "pred_masks", torch.einsum("bqc,bchw->bqhw", raw.embeddings[:, -1], raw.features))
    nearly(case, "logits", out.logits)
    assert isinstance(model.decoder, LabelMap)
    check_labels(case, out.logits, model.decoder, meta)


def nearly(case: Case, name: str, ours: Tensor) -> None:
    """All but one in a thousand of the values agree: the attention masks are thresholds."""
    described, tolerance = case.manifest["outputs"][name], case.manifest["tolerance"]
    assert list(ours.shape) == described["shape"], name
    off = np.abs(case.part(name, ours) - case.stored(name).reshape(-1))
    far = off > tolerance["atol"] + tolerance["rtol"] * described["absmax"]
    assert far.mean() <= 1e-3, f"{name}: {far.sum()} of {len(far)} differ, the worst by {off.max():.3g}"


def _queries_postprocess(case: Case) -> None:
    described = case.manifest["input"]["meta"]
    height, width = described["img_hw"]
    down, right = described["padded_hw"]
    preset = preset_of(case)
    with torch.device("meta"):
        model: Any = zoo.model_class(preset.name)(preset.model)  # type: ignore[call-arg]
    scene = case.scenes.make_scene(case.seed, height, width, 16, num_classes=150)
    given = case.scenes.query_raw(case.seed, scene, down // 4, right // 4, 4, 100, 150)
    logits, masks = (torch.from_numpy(given[name])[None] for name in ("logits", "masks"))
    out = model.label_map(logits.softmax(2), masks)
    absolute = case.manifest["tolerance"]["atol"]
    case.compare("logits", out.logits, 0, absolute)
    case.manifest["tolerance"]["rtol"] = 0
    check_labels(case, out.logits, model.decoder, meta_of(described["ori_shape"], (height, width), (down, right)))
