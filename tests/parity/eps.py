"""EPS against halbielee/EPS: ResNet-38, the loss, the pseudo masks, the schedule."""

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskkit import zoo
from maskkit.config import PseudoMasks, TrainConfig, change
from maskkit.data.loader import normalise
from maskkit.decode.tags import rival_scores
from maskkit.engine.optim import learning_rate, set_rate
from maskkit.infer.pseudo_labels import label_map, localise
from maskkit.models.eps import Eps, EpsConfig, EpsRaw
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target
from tests.parity.goldens import Case
from tests.parity.semantic import every_output_seen

NAME = "eps-resnet38"
INPUT = zoo.preset(NAME).input


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD": _forward, "LOSS": _loss, "POSTPROCESS": _pseudo_mask, "OPTIMIZER": _schedule}[case.manifest["kind"]](
        case
    )
    every_output_seen(case)


def _model(case: Case, classes: int) -> Eps:
    """The network of the case with its weights, or a small one where only what follows the network is compared."""
    knobs: dict[str, Any] = {"num_classes": classes + 1}
    knobs["background_map"] = case.config.get("network", "resnet38_eps").endswith("eps")
    preset = zoo.preset(NAME)
    assert isinstance(preset.model, EpsConfig)
    if not case.manifest["parameters"]:
        if "tau" in case.config:
            knobs |= {"tau": case.config["tau"], "mix": case.config["lam"]}
        return Eps(change(preset.model, backbone={"name": "mobilenetv2_100", "frozen_stride": 0}, **knobs)).eval()
    return case.filled(NAME, **knobs)


def _image(case: Case) -> Tensor:
    """The image of the case, RGB bytes (3, H, W)."""
    return torch.from_numpy(case.recipe.seeded_image(*case.numbers_in(case.manifest["input"]["image"]))).permute(
        2, 0, 1
    )


def _forward(case: Case) -> None:
    outputs = case.config["num_outputs"]
    model = _model(case, outputs - case.config["network"].endswith("eps"))
    backbone: Any = model.backbone
    seen: dict[str, Tensor] = {}
    for key, stage in (("conv4", 3), ("conv5", 4)):
        backbone.stages[stage][0].norms[0].register_forward_hook(
            lambda _, __, out, key=key: seen.update({key: out.relu()})
        )
    backbone.register_forward_hook(lambda _, __, out: seen.update(conv6=out[8]))
    images = normalise(_image(case), INPUT)[None]
    with torch.no_grad():
        raw = model(images)
    seen |= {"input": images, "pred": raw.maps.mean((2, 3))}
    seen["cam"] = raw.maps if model.config.background_map else model.activations(raw)
    for key, value in seen.items():
        case.compare(key, value, 2e-4, 1e-5)


def _loss(case: Case) -> None:
    classes = case.config["num_classes"]
    given = case.manifest["input"]
    calls = {key: case.numbers_in(given[key].split("(", 1)[1]) for key in ("labels", "cam", "saliency")}
    labels = case.inputs.labels(*calls["labels"])
    maps = torch.from_numpy(case.inputs.cams(*calls["cam"], labels)).requires_grad_()
    *shape, keep = calls["saliency"]
    saliency = torch.from_numpy(case.inputs.saliency(*shape, labels, keep=keep))[:, 0]
    model, raw = _model(case, classes), EpsRaw(maps)
    tags = torch.from_numpy(labels).bool()
    with_background = F.pad(tags, [1, 0], value=True)
    targets = [
        Target.of(
            [],
            [],
            tags=t,
        )
        for t in with_background
    ]
    for target, s in zip(targets, saliency, strict=True):
        target.saliency = s
    size = (saliency.shape[1], saliency.shape[2])
    metas = [ImageMeta(i, "", size, size) for i in range(len(targets))]
    batch = Batch(torch.zeros(len(targets), 3, *size), torch.tensor([size] * len(targets)), targets, metas)
    losses = model.loss_terms(raw, batch)
    norms = []
    for key, name in (("sal", "semantic/saliency"), ("cls", "classification")):
        case.compare(f"loss_{key}", losses[name], 1e-5)
        (gradient,) = torch.autograd.grad(losses[name], maps, retain_graph=True)
        case.compare(f"grad_{key}", gradient, 1e-5)
        norms.append(gradient.double().norm())
    case.compare("grad_norms", torch.stack(norms), 1e-5)
    small = F.interpolate(saliency[:, None], size=maps.shape[2:], mode="nearest")[:, 0]
    estimate = model.estimate_saliency(maps, tags, small)
    case.compare("fg_map", estimate.foreground[:, None], 1e-5)
    case.compare("bg_map", estimate.not_background[:, None], 1e-5)
    case.compare("sal_pred", estimate.saliency[:, None], 1e-5)
    case.compare("iou_saliency", estimate.overlap, 1e-5)


def _pseudo_mask(case: Case) -> None:
    classes, given = case.config["num_classes"], case.manifest["input"]
    image = _image(case)
    height, width = image.shape[1:]
    seed, *rest = case.numbers_in(given["labels"].split("(", 1)[1])
    labels = case.inputs.labels(seed, *rest[:3])[0]
    model = _model(case, classes)
    if not case.manifest["parameters"]:
        background = "background=True" in given["network"]
        maps = case.inputs.scale_cams(seed, classes, height, width, labels, case.config["scales"], background)
        queue = iter(maps)
        model.forward = lambda images, sizes=None, targets=None: EpsRaw(torch.from_numpy(next(queue)))  # type: ignore[method-assign]
    settings = PseudoMasks(tuple(case.config["scales"]), base=max(height, width), threshold=case.config["thr"])
    present = torch.from_numpy(labels).bool()
    found = localise(model, image, present, INPUT, settings)
    scores = rival_scores(found.activations, found.present, settings.threshold)
    assert np.array_equal(case.stored("present"), np.flatnonzero(labels))
    share = re.search(r"network: ([\de.-]+)", case.manifest["tolerance"])
    assert share is not None
    limit = float(share[1]) if case.manifest["parameters"] else 1e-4
    for number, activation in zip(np.flatnonzero(labels).tolist(), scores[1:][found.present], strict=True):
        case.compare(f"cam.{number}", activation, 0.0, limit)
    ours = label_map(found, settings.threshold)
    official = case.stored("pseudo_mask").reshape(-1)
    assert (case.part("pseudo_mask", ours) != official).mean() <= 1e-3
    counts = np.bincount(ours.ravel(), minlength=classes + 1)
    assert np.abs(counts - case.stored("histogram")).sum() <= 2e-3 * ours.size


def _schedule(case: Case) -> None:
    """The official optimizer is plain SGD with hardly any momentum; its groups differ in rate and in decay."""
    config = case.config
    settings = TrainConfig(lr=config["lr"], schedule="poly", warmup=0)
    values = [torch.from_numpy(case.recipe.seeded_array(f"p{g}", (8,), case.seed)).requires_grad_() for g in range(4)]
    decays = (config["wt_dec"], 0.0, config["wt_dec"], 0.0)
    groups = [
        {"params": [v], "lr_factor": factor, "weight_decay": decay}
        for v, factor, decay in zip(values, (1, 2, 10, 20), decays, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=config["lr"], momentum=config["effective_momentum"])
    steps = case.manifest["outputs"]["lr"]["shape"][0]
    rates, after = [], []
    for step in range(steps):
        # our runs end with the last step; the official rate stays where it was
        set_rate(optimizer, learning_rate(min(step, config["max_step"] - 1), config["max_step"], settings))
        for g, value in enumerate(values):
            value.grad = torch.from_numpy(case.recipe.seeded_array(f"g{g}.{step}", (8,), case.seed))
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        after.append(torch.stack([v.detach().clone() for v in values]))
    case.compare("lr", np.array(rates), 1e-6)
    case.compare("values", torch.stack(after), 1e-6)
