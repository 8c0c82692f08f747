"""Mask2Former of mmdetection: instance and panoptic segmentation on ResNets and Swin transformers."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.models.mask2former import Mask2Former, Mask2FormerRaw
from maskkit.zoo.class_names import COCO_PANOPTIC
from tests.parity.goldens import Case
from tests.parity.mmdet import official
from tests.parity.mmseg import nearly

_BACKBONES = {"r50": "resnet50", "swin-t": "swin-t"}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "POSTPROCESS": _postprocess}[case.manifest["kind"]](case)


def _preset(case: Case) -> str:
    """The preset of ``mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic``."""
    m = re.fullmatch(r"mask2former_(r50|swin-t)[\w-]*_coco(-panoptic)?", case.config["name"])
    assert m is not None
    return f"mask2former-{_BACKBONES[m[1]]}{m[2] or ''}-mmdet"


def _forward(case: Case) -> None:
    preset = _preset(case)
    # in double precision: in R50's case a mask logit of 5e-6 decides what a query attends to, and single precision
    # rounds it either way, by the number of threads
    model: Mask2Former = official.model_of(case, preset).double()
    batch = official.image_batch(case, preset)
    layers: list[Tensor] = []

    def watch(_: nn.Module, __: Any, output: Tensor) -> None:
        layers.append(output)

    for layer in model.pixel_decoder.layers:
        layer.register_forward_hook(watch)
    with torch.no_grad():
        stages = model.backbone(batch.images.double())
        features, levels = model.pixel_decoder(list(stages.values()))
        logits, embeddings = model.query_decoder(levels, features)
    for i, stage in enumerate(stages.values(), 2):
        nearly(case, f"backbone.c{i}", stage)
    for name in [n for n in case.outputs if n.startswith("encoder.layer")]:
        nearly(case, name, layers[int(name.removeprefix("encoder.layer"))])
    for i, level in enumerate(levels):
        nearly(case, f"multi_scale.{i}", level)
    nearly(case, "mask_features", features)
    if "relative_position_index" in case.outputs:
        index = model.backbone.body.layers_0.blocks[0].attn.relative_position_index
        case.compare("relative_position_index", index, 0)
    for name in sorted(case.unchecked):
        at = -1 if name.startswith("pred") else int(re.findall(r"\d+", name)[0])
        masks = torch.einsum("bqc,bchw->bqhw", embeddings[:, at], features)
        nearly(case, name, masks if name.endswith("masks") else logits[:, at])


def _postprocess(case: Case) -> None:
    """Results in the image. The official panoptic models give the objects too, of the best pairs those of things."""
    preset = _preset(case)
    height, width = case.manifest["input"]["meta"]["img_shape"]
    classes = case.numbers_in(case.manifest["input"]["scene"].partition("num_classes")[2])[0]
    scene = case.scenes.make_scene(case.seed, height, width, 14, num_classes=classes)
    made = case.scenes.query_raw(case.seed, scene, 40, 56, 4, 100, classes)
    logits, masks = (torch.from_numpy(made[name]) for name in ("logits", "masks"))
    raw = Mask2FormerRaw(logits[None, None], torch.eye(len(masks))[None, None], masks[None])
    meta, close = official.meta_of(case), case.manifest["tolerance"]
    categories = COCO_PANOPTIC if classes == len(COCO_PANOPTIC) else official.CATEGORIES

    model: Mask2Former = official.model_of(case, preset, fill=False, task="instance")
    found = decode(model.decoder, to_arrays(model.select(raw)), [meta], categories)[0].instances
    assert found is not None
    assert found.masks is not None
    theirs = case.stored("instance.scores")
    assert int(case.stored("instance.count")[0]) == len(theirs)
    drawn = int((theirs > 0.1).sum())
    # ours has no objects without a pixel, whose score is 0
    assert len(found) == int((theirs > 0).sum())
    assert np.abs(found.scores - theirs[: len(found)]).max() <= close["scores"]
    assert np.array_equal(found.labels, case.stored("instance.labels")[: len(found)])
    best = found[np.arange(drawn)]
    case.compare("instance.boxes", best.boxes, 0, 1)
    assert best.masks is not None
    official.compare_masks(_Prefixed(case, "instance."), best.masks.dense(), 0.002)  # type: ignore[arg-type]
    if "panoptic.ids" in case.outputs:
        _panoptic(case, preset, raw)


class _Prefixed:
    """A case whose outputs are called without a prefix."""

    def __init__(self, case: Case, prefix: str) -> None:
        self.case, self.prefix = case, prefix

    def stored(self, name: str) -> np.ndarray:
        return self.case.stored(self.prefix + name)

    def sample(self, name: str, ours: np.ndarray) -> np.ndarray:
        return self.case.sample(self.prefix + name, ours)


def _panoptic(case: Case, preset: str, raw: Mask2FormerRaw) -> None:
    """Official ids: the class of stuff; of things, the class plus 1000 times a running number.

    A thing without a pixel takes a number there too, so that only the order of the numbers can be the same.
    """
    model: Mask2Former = official.model_of(case, preset, fill=False)
    meta = official.meta_of(case)
    found = decode(model.decoder, to_arrays(model.select(raw)), [meta], COCO_PANOPTIC)[0].panoptic
    assert found is not None
    segments = case.stored("panoptic.segments")
    things = iter(sorted(n for n in segments[:, 0].tolist() if n >= 1000))
    ids = np.full(1 + max(s.id for s in found.segments), 133)
    for segment in found.segments:
        ids[segment.id] = next(things) if segment.thing else segment.label
        assert ids[segment.id] % 1000 == segment.label
    ours = ids[found.ids]
    same = case.part("panoptic.ids", ours) == case.stored("panoptic.ids").reshape(-1)
    assert same.mean() >= 0.999
    numbers, areas = np.unique(ours, return_counts=True)
    assert np.array_equal(numbers, segments[:, 0])
    assert (np.abs(areas - segments[:, 1]) <= 0.001 * ours.size).all()
