"""BlendMask against AdelaiDet. Every stored tensor of a case is compared; nothing is left out."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.config import change
from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.models.blendmask import BasisRaw, BlendMask, BlendMaskConfig, BlendMaskRaw
from maskkit.nn.fcos import FcosRaw, detect
from maskkit.nn.roi import Sampled, crop_masks
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from maskkit.zoo.blendmask import rename
from tests.parity.goldens import Case, watched

_PRESETS = {
    "R_50_1x": "blendmask-resnet50-1x",
    "R_50_3x": "blendmask-resnet50-3x",
    "R_101_3x": "blendmask-resnet101-3x",
}
_TERMS = {
    "loss_fcos_cls": "classification",
    "loss_fcos_loc": "box",
    "loss_fcos_ctr": "quality",
    "loss_mask": "mask",
    "loss_basis_sem": "semantic",
}


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"forward": _forward, "postprocess": _postprocess, "loss": _loss}
    (_train_step if "gradnorm_names" in case.manifest else kinds[case.manifest["kind"]])(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _preset(case: Case) -> str:
    return _PRESETS[case.config["file"].rpartition("/")[2].removesuffix(".yaml")]


def _model(case: Case, **knobs: Any) -> BlendMask:
    config = zoo.preset(_preset(case)).model
    assert isinstance(config, BlendMaskConfig)
    return BlendMask(change(config, **knobs))


def _batch(case: Case) -> Batch:
    """The images of a case, RGB here, with the objects of its scenes where it has any."""
    given, sizes = zoo.preset(_preset(case)).input, case.manifest["inputs"]["image_sizes_hw"]
    height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    targets = []
    for i, (h, w) in enumerate(sizes):
        image = torch.from_numpy(case.recipe.seeded_image(h, w, case.seed + i)).permute(2, 0, 1).float()
        mean, std = (torch.tensor(v)[:, None, None] for v in (given.mean, given.std))
        images[i, :, :h, :w] = (image - mean) / std
        scene = case.scenes.make_scene(case.seed + 10 + i, h, w, 4 + i)
        targets.append(_target(scene, (height, width)))
    metas = [ImageMeta(i, "", tuple(s), (height, width)) for i, s in enumerate(sizes)]
    return Batch(images, torch.tensor(sizes), targets, metas)


def _target(scene: dict[str, Any], size: tuple[int, int]) -> Target:
    h, w = scene["size"]
    masks = np.pad(scene["masks"], [(0, 0), (0, size[0] - h), (0, size[1] - w)])
    return Target.of(scene["boxes"], scene["classes"], masks)


def _predictions(case: Case, scenes: list[dict[str, Any]], seeds: list[int], size: tuple[int, int]) -> FcosRaw:
    """Seeded outputs of the detector for images of ``scenes``, 784 numbers of attention at each location."""
    made = [case.scenes.fcos_raw(n, scene, *size, top=784) for n, scene in zip(seeds, scenes, strict=True)]
    levels = range(len(made[0]["logits"]))
    logits, distances, quality, extra = (
        tuple(torch.from_numpy(np.stack([m[name][i] for m in made])).requires_grad_() for i in levels)
        for name in ("logits", "reg", "ctr", "top")
    )
    return FcosRaw(logits, distances, quality, extra)


def _unpack(case: Case, name: str) -> np.ndarray:
    shape = case.manifest["outputs"][name]["shape"]
    return np.unpackbits(case.stored(name))[: np.prod(shape)].reshape(shape).astype(bool)


def _forward(case: Case) -> None:
    model = case.filled(_preset(case))
    images = _batch(case).images
    with torch.no_grad(), watched(model.fpn) as seen:
        raw = model(images)
    close = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    for i, level in enumerate(seen[0]):
        case.compare(f"fpn.p{i + 3}", level, *close)
    for name, parts in zip(("logits", "reg", "ctrness", "top_feats"), raw.detector[:4], strict=True):
        for i, part in enumerate(parts):
            case.compare(f"fcos.{name}.{i}", part, *close)
    case.compare("bases", raw.basis.bases, *close)
    case.compare("seg_thing", raw.basis.semantic, *close)


def _postprocess(case: Case) -> None:
    inputs, given = case.manifest["inputs"], case.config["thresholds"]
    model = _model(
        case,
        detector={
            "min_score": given["score"],
            "nms_threshold": given["nms"],
            "candidates": given["pre_nms_topk"],
            "detections": given["post_nms_topk"],
            "score_with_quality": given["thresh_with_ctr"],
        },
        attention=given["attn_size"],
        crop=given["bottom_resolution"],
    )
    (h, w), (height, width) = inputs["image_hw"], inputs["padded_hw"]
    objects = case.numbers_in(inputs["scene"])[-1]
    scene = case.scenes.make_scene(case.seed, h, w, objects)
    fcos = _predictions(case, [scene], [case.seed], (height, width))
    shape = (1, model.config.bases, height // 4, width // 4)
    bases = torch.from_numpy(case.scenes.quantise(2.5 * case.scenes.maps_raw("bases", shape, case.seed, smooth=6)))
    raw = BlendMaskRaw(fcos, BasisRaw(bases, torch.zeros(1, 1, 1, 1)))
    with torch.no_grad():
        found, chosen = detect(fcos, model.config.detector), model.select(raw)
    count = int((found.scores > 0).sum())
    assert count == case.manifest["final_instances"]
    crops = model.crops(bases, torch.nn.functional.pad(found.boxes[0, :count], (1, 0)))
    size = tuple(inputs["output_hw"])
    affine = np.diag([size[1] / w, size[0] / h, 1])[:2]
    meta = ImageMeta(0, "", size, (height, width), affine)
    categories = Categories.of(map(str, range(80)))
    instances = decode(model.decoder, to_arrays(chosen), [meta], categories)[0].instances
    assert instances is not None
    assert instances.masks is not None

    # in the official order, which is that of NMS and not of the scores
    scores, classes = case.stored("scores"), case.stored("classes")
    place = [np.abs(instances.scores - s).argmin() for s in scores]
    assert sorted(place) == list(range(count))
    case.compare("rois", crops[place], 1e-5)
    case.compare("mask_probs", chosen.masks[0, place, None], 1e-5)
    tolerance = case.manifest["tolerance"]
    case.compare("boxes", instances.boxes[place], 0, tolerance["boxes"])
    assert np.abs(instances.scores[place] - scores).max() <= tolerance["scores"]
    assert np.array_equal(instances.labels[place], classes)
    ours, official = instances.masks.dense()[place], _unpack(case, "masks")
    ious = (ours & official).sum((1, 2)) / (ours | official).sum((1, 2))
    assert ious.min() >= tolerance["mask_iou"], ious


def _loss(case: Case) -> None:
    inputs = case.manifest["inputs"]
    height, width = inputs["padded_hw"]
    model = _model(case)
    scenes = [case.scenes.make_scene(case.seed + 10 + i, height, width, 4 + i) for i in range(2)]
    fcos = _predictions(case, scenes, [case.seed, case.seed + 1], (height, width))
    shape = (2, model.config.bases, height // 4, width // 4)
    bases = torch.from_numpy(case.scenes.maps_raw("bases", shape, case.seed)).requires_grad_()
    targets = [_target(scene, (height, width)) for scene in scenes]
    metas = [ImageMeta(i, "", (height, width), (height, width)) for i in range(2)]
    batch = Batch(torch.zeros(2, 3, height, width), full_sizes(torch.zeros(2, 3, height, width)), targets, metas)

    image = torch.arange(2).repeat_interleave(torch.tensor([len(t) for t in targets]))
    rois = torch.cat([image[:, None].float(), torch.cat([t.boxes for t in targets])], 1)
    objects = torch.cat([torch.arange(len(t)) for t in targets])
    crops = crop_masks(targets, Sampled(rois, objects), model.config.crop) >= 0.5
    assert np.array_equal(crops.numpy(), _unpack(case, "gt_crops"))

    raw = BlendMaskRaw(fcos, BasisRaw(bases, torch.zeros(2, 81, height // 8, width // 8)))
    losses = model.loss_terms(raw, batch)
    rtol, atol = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    leaves = {"logits": fcos.logits, "reg": fcos.distances, "ctr": fcos.quality, "top": fcos.extra, "bases": (bases,)}
    for name in list(case.outputs):
        if name in _TERMS:
            case.compare(name, losses[_TERMS[name]], rtol, atol)
        elif name.startswith("gradnorm."):
            _, term, group = name.split(".")
            gradients = torch.autograd.grad(losses[_TERMS[term]], leaves[group], retain_graph=True)
            case.compare(name, torch.stack([g.norm() for g in gradients]), 10 * rtol, atol)


def _train_step(case: Case) -> None:
    model = case.filled(_preset(case)).train()
    batch = _batch(case)
    losses = model.loss_terms(model(batch.images), batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    rtol = case.manifest["tolerance"]["losses_rtol"]
    case.compare("loss_total", total, rtol)
    for name, ours in _TERMS.items():
        case.compare(name, losses[ours], rtol)
    parameters = dict(model.named_parameters())
    official = case.manifest["gradnorm_names"]
    ours = [next(iter(rename({name: torch.zeros(1)}))) for name in official]
    assert {n for n, p in parameters.items() if p.requires_grad} == set(ours)
    norms = np.array([_norm(parameters[name].grad) for name in ours])
    stored = case.stored("gradnorm")
    assert np.allclose(norms, stored, rtol=case.manifest["tolerance"]["gradnorm_rtol"], atol=1e-5), official[
        np.abs(norms / stored - 1).argmax()
    ]


def _norm(gradient: Tensor | None) -> float:
    assert gradient is not None
    return float(gradient.norm())
