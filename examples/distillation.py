"""Fine-tuning of a detector with masks where few objects are labelled: the last part of ``train_builtin.py``.

A detector that does not change, the *teacher*, sees the same augmented images. Its class scores are the targets at all
locations: objects without a label are no background, and classes that the images lack are not forgotten (Li, Hoiem:
"Learning without Forgetting", ECCV 2016). Where it is sure, its distributions of the sides are targets too (Zheng et
al.: "Localization Distillation", CVPR 2022). Locations that find a labelled object learn from its label as well: their
class score the mean of the teacher's and of the IoU of their box, their box the labelled one by GIoU, their mask the
labelled one by dice.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from maskkit import zoo
from maskkit.checkpoints.foreign import read_tensors
from maskkit.config import AugmentConfig, RunConfig
from maskkit.data.dataset import Dataset
from maskkit.data.loader import train_loader
from maskkit.engine.optim import update_average
from maskkit.geometry import boxes as box_math
from maskkit.models.nanodet import NanoDet
from maskkit.models.nanoinst import NanoInst
from maskkit.nn.fcos import flatten
from maskkit.nn.fcos_targets import Positives
from maskkit.nn.losses import in_fp32
from maskkit.nn.nanodet import NanoDetRaw, all_boxes, extent, priors
from maskkit.targets import Batch, Target
from maskkit.zoo.class_names import COCO

POSITIVES = 6
"""Locations of an object that learn it, at most."""
AUGMENT = AugmentConfig(expand=1.5, copy_paste=0.3)
REPEAT = 0.02
"""Share of the images in which a class should be; images of rarer ones come more often."""
SURE = 0.1
"""Class score from which on the teacher's word about sides counts."""
BOX_WEIGHT = 0.5
"""Of the labelled boxes, beside the teacher's."""
MASKS_RATE = 8.0
"""Rate of the mask side over that of the detector."""
DECAY = 0.995
"""Of the moving average of the weights."""
CHECKS = 4
"""How often the average is measured, at equal distances; the last time at the end."""

Measure = Callable[[NanoInst, str], dict[str, float]]
"""Stores a model under a name and gives its figures."""


class Matches(NamedTuple):
    """The n locations of an image that find a labelled object."""

    location: Tensor
    object: Tensor
    """Index into the image's target."""
    iou: Tensor


def matches(boxes: Tensor, sure: Tensor, target: Target) -> Matches:
    """For each object with a mask where the detector finds it: the locations of high class score and IoU.

    These would win in an evaluation. Objects that it finds nowhere are left out, since their masks are never asked for.
    ``boxes`` (P, 4) and the highest class score ``sure`` (P) are the detector's. Object by object, best first.
    """
    known = torch.nonzero(target.has_mask & ~target.crowd)[:, 0]
    iou = box_math.iou(boxes, target.boxes[known])  # (P, N)
    best = (iou * sure[:, None].sqrt() * (iou > 0.4)).topk(POSITIVES, 0)  # (6, N)
    row, column = torch.nonzero(best.values.T > 0.02, as_tuple=True)
    location = best.indices.T[row, column]
    return Matches(location, known[row], iou[location, row])


def losses(model: NanoInst, said: NanoDetRaw, batch: Batch, classes: Tensor, bf16: bool) -> dict[str, Tensor]:
    """The terms of a batch; ``said`` is the teacher's output, ``classes`` the number of each label in it or -1."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        raw = model(batch.images)
    raw, said = in_fp32(raw), in_fp32(said)
    logits, taught = flatten(raw.detector.logits), flatten(said.logits).sigmoid()  # (B, P, K)
    boxes = torch.minimum(all_boxes(raw.detector, priors(raw.detector)).clamp(min=0), extent(raw.detector))
    sure = logits.detach().amax(2).sigmoid()
    found = [matches(b, s, t) for b, s, t in zip(boxes.detach(), sure, batch.targets, strict=True)]
    image = torch.cat([torch.full_like(f.location, i) for i, f in enumerate(found)])
    location, thing, iou = (torch.cat(columns) for columns in zip(*found, strict=True))
    targets = batch.targets
    label = classes[torch.cat([t.labels[f.object] for f, t in zip(found, targets, strict=True)])]
    truth = torch.cat([t.boxes[f.object] for f, t in zip(found, targets, strict=True)])

    scores = taught.clone()
    named = label >= 0
    place = image[named], location[named], label[named]
    scores[place] = (taught[place] + iou[named]) / 2
    cross = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    focal = cross * (logits.sigmoid() - scores).square()
    trusted = taught.amax(2) * (taught.amax(2) > SURE)  # (B, P)
    divergence = side_divergence(flatten(raw.detector.sides), flatten(said.sides))
    giou = generalized_box_iou_loss(boxes[image, location], truth)
    none = torch.zeros(len(label))
    positives = Positives(image, location, thing, label, truth, none)
    return {
        "classification": focal.sum() / (scores.amax(2) > SURE).sum().clamp(min=1),
        "box/taught": (divergence * trusted).sum() / trusted.sum().clamp(min=1),
        "box/overlap": BOX_WEIGHT * giou.sum() / max(len(giou), 1),
        **model.mask_losses(raw, positives, batch),
    }


def side_divergence(sides: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each location's four distributions from the teacher's, their mean: (B, P)."""
    own, theirs = (s.unflatten(-1, (4, s.shape[-1] // 4)).log_softmax(-1) for s in (sides, taught))
    return (theirs.exp() * (theirs - own)).sum(-1).mean(-1)


def loader(dataset: Dataset, batch: int, first: int) -> Iterator[Batch]:
    """Augmented batches from step ``first`` on."""
    preset = zoo.preset("nanoinst-416")
    train = replace(preset.train, batch=batch, workers=0, repeat=REPEAT)
    return train_loader(dataset, RunConfig(preset.name, preset.model, preset.input, AUGMENT, train), first, 10**6)


def fine_tune(
    model: NanoInst, teacher: NanoDet, dataset: Dataset, given: argparse.Namespace, measure: Measure
) -> NanoInst:
    """Train all of ``model`` for ``given.tune_minutes``, measurements not counted; returns the best of its averages.

    Candidates are the averages that were measured on the way, and the means of each of them and of the beginning
    (Wortsman et al.: "Robust fine-tuning of zero-shot models", CVPR 2022). Statistics of batch norm stay as they are.
    """
    file = given.out / "tune.pt"
    known = dataset.categories.numbers_in(COCO)
    classes = torch.tensor([known.get(i, -1) for i in range(len(dataset.categories))])
    start = deepcopy(model).eval()
    model, average, teacher = model.eval(), deepcopy(model).eval(), teacher.eval()
    masks = [*model.dynamic.parameters(), *model.mask_branch.parameters()]
    inside = {id(p) for p in masks}
    rest = [p for p in model.parameters() if id(p) not in inside]
    for p in model.parameters():
        p.requires_grad_(True)
    groups = [{"params": rest, "factor": 1.0}, {"params": masks, "factor": MASKS_RATE}]
    optimizer = torch.optim.AdamW(groups, given.tune_lr, weight_decay=0.01)
    step, seconds, measured = 0, 0.0, {}
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, measured = state["step"], state["seconds"], state["measured"]

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"step": step, "seconds": seconds, "measured": measured}
        torch.save(state, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    batches = loader(dataset, given.batch, step)
    shown: list[dict[str, float]] = []
    while (share := seconds / (60 * given.tune_minutes)) < 1:
        begin = time.monotonic()
        rate = given.tune_lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        batch = next(batches)
        batch = replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
            said = teacher(batch.images)
        torch.manual_seed(step)
        terms = losses(model, said, batch, classes, given.bf16)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        update_average(average, model, DECAY, step)
        step += 1
        seconds += time.monotonic() - begin
        shown.append({name: term.item() for name, term in terms.items()})
        if step % 25 == 0:
            means = " ".join(f"{name} {np.mean([s[name] for s in shown]):.4f}" for name in terms)
            print(f"step {step} {means} rate {rate:.1e} {seconds:.0f} s", flush=True)
            shown = []
            save()
        if int(CHECKS * seconds / (60 * given.tune_minutes)) > int(CHECKS * share):
            for weight in (1.0, 0.5):
                name = f"tune-{step}-{weight}"
                measured[name] = measure(mixed(start, average, weight), name)
                print(name, json.dumps(measured[name]), flush=True)
            save()
    best = max(measured, key=lambda name: sum(measured[name].values()))
    print("taken:", best, json.dumps(measured[best]), flush=True)
    start.load_state_dict(read_tensors(given.out / f"{best}.safetensors"))
    return start


def mixed(start: NanoInst, end: NanoInst, weight: float) -> NanoInst:
    """The weights of ``end`` times ``weight`` and the rest from ``start``."""
    result = deepcopy(start)
    theirs = end.state_dict()
    mean = {n: t.lerp(theirs[n], weight) if t.is_floating_point() else t for n, t in start.state_dict().items()}
    result.load_state_dict(mean)
    return result
