"""Trains the built-in model of the package: masks for a trained NanoDet-Plus, then all of it.

    python examples/train_builtin.py --data DATA --detector nanodet_plus_m_416.safetensors --out runs/builtin \\
        --minutes 40 --tune-minutes 45 --bf16

``--data`` is a folder with small samples of COCO 2017 (cocodataset.org) and of photographs of animals in COCO's format,
each with ``images/`` and ``train.json``: see ``docs/builtin.md``. ``--detector`` is a file with the weights of
NanoDet-Plus-m (github.com/RangiLyu/nanodet, Apache-2.0), trained on COCO's boxes.

1. Each training image, and random crops of it, go through the frozen detector once; its pyramid is stored in half
   precision, with what it says where it finds an object that has a mask.
2. The mask side is trained on what is stored. A step costs a fraction of one with the detector.
   At 30 % of it the weights are kept: the result is the mean of these and the last, which is better than either.
3. Everything is trained at a small rate (`fine_tune`), with the published detector as the teacher of what nobody has
   labelled. ``--tune-minutes`` is the length; by default there is no such part. ``--start FILE``, a checkpoint with
   masks, takes the place of the first two.
4. The result is stored in half precision and measured on the val splits of ``coco_instances`` and ``coco_panoptic``.

The same command continues an interrupted run: every part begins where the last file of it ends.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from common import SUPER, merge
from maskkit import load, zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.foreign import read_checkpoint, read_tensors
from maskkit.cli.console import stdout
from maskkit.config import AugmentConfig, RunConfig
from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.loader import collate, train_loader
from maskkit.data.transforms import apply, eval_ops, train_ops
from maskkit.engine.optim import update_average
from maskkit.eval.instance.metric import CocoResult
from maskkit.eval.rows import Row
from maskkit.geometry import boxes as box_math
from maskkit.models.nanodet import NanoDet
from maskkit.models.nanoinst import NanoInst
from maskkit.nn.box_masks import box_masks
from maskkit.nn.dynamic_mask import mask_targets
from maskkit.nn.fcos import flatten
from maskkit.nn.fcos_targets import Positives
from maskkit.nn.losses import dice_loss, in_fp32
from maskkit.nn.nanodet import NanoDetRaw, all_boxes, extent, priors
from maskkit.prediction import Categories
from maskkit.targets import Batch, Target
from maskkit.zoo.class_names import COCO
from maskkit.zoo.nanodet import rename

PRESET = "nanoinst-416"
INPUT = (480, 480)
"""Of the result, in pixels; the trainings have that of the preset."""
PARTS = ("coco_instances", "coco_panoptic", "coco128_extra", "coco_person", "animals")
SIDES = (52, 26, 13)
"""Cells of a side of the levels that the mask branch reads, for 416 pixels."""
VERSIONS = 2
"""Of a training image: as it is, and random crops."""
FEW = 2
"""Images with at most so many objects are stored as they are only."""
POSITIVES = 6
"""Locations of an object that learn it, at most."""
_LOCATIONS = 20
EARLY = 0.3
"""Share of the training after which the weights are kept; the result is the mean of these and the last."""
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
CHECKS = 2
"""How often the average is measured, at equal distances; the last time at the end."""


def from_detector(file: Path) -> NanoInst:
    """A new model with a trained detector."""
    torch.manual_seed(0)
    preset = zoo.preset(PRESET)
    model = NanoInst(preset.model)  # type: ignore[arg-type]
    missing, unexpected = model.load_state_dict(rename(read_checkpoint(file)), strict=False)
    assert not unexpected
    assert all(name.startswith(("dynamic.", "mask_branch.")) for name in missing)
    return model


# 1. what the frozen detector sees -------------------------------------------------------------------------------------


def operations(version: int) -> list[Any]:
    """How a version of an image is made."""
    input = zoo.preset(PRESET).input
    return train_ops(AugmentConfig(expand=1.5), input) if version else eval_ops(input)


class Cache:
    """The pyramid of every version of every image in one file, and the objects of each in another."""

    WIDTHS = (24 * 104 * 104, *(96 * side * side for side in SIDES))

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        file = folder / "features.f16"
        mode = "r+" if file.exists() else "w+"
        self.features = np.memmap(file, np.float16, mode, shape=(count, sum(self.WIDTHS)))

    def file(self, block: int) -> Path:
        """The objects of a block of images."""
        return self.folder / f"objects-{block:03d}.pt"

    def levels(self, rows: list[int]) -> tuple[Tensor, list[Tensor]]:
        """Features of stride 4 and the levels of the pyramid of some versions, in fp32."""
        flat = torch.from_numpy(self.features[rows]).float()
        fine, *levels = flat.split(self.WIDTHS, 1)
        return fine.view(-1, 24, 104, 104), [
            level.view(-1, 96, side, side) for level, side in zip(levels, SIDES, strict=True)
        ]


@torch.inference_mode()
def store(model: NanoInst, dataset: Dataset, folder: Path, block: int = 32) -> tuple[Cache, list[dict[str, Tensor]]]:
    """Features and objects of all versions of every image; those that are stored already are read."""
    count = VERSIONS * len(dataset)
    cache = Cache(folder, count)
    found: list[dict[str, Tensor]] = []
    model.eval()
    for first in range(0, len(dataset), block):
        file = cache.file(first // block)
        if file.exists():
            found += torch.load(file, weights_only=True)
            continue
        rows = []
        for i in range(first, min(first + block, len(dataset))):
            image = dataset.load(i)
            for v in range(VERSIONS):
                if v and len(image[1]) <= FEW:
                    rows.append({"level": torch.zeros(0)})
                    continue
                sample = apply(operations(v), image, np.random.default_rng([0, i, v]))
                batch = collate([sample], zoo.preset(PRESET).input)
                features = model.backbone(batch.images.contiguous(memory_format=torch.channels_last))
                levels = model.fpn([features[s] for s in (8, 16, 32)])
                flat = torch.cat([part.flatten() for part in (features[4], *levels[:3])])
                cache.features[VERSIONS * i + v] = flat.half().numpy()
                towers = model.head.features(levels)
                rows.append(objects(model.head.predict(towers), towers, batch.targets[0]))
        cache.features.flush()
        torch.save(rows, file)
        found += rows
        print(f"stored {first + block} of {len(dataset)} images", flush=True)
    return cache, found


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


def objects(raw: NanoDetRaw, towers: list[Tensor], target: Any) -> dict[str, Tensor]:
    """For each object with a mask: where the detector finds it, what it sees and says there, and the mask at stride 4.

    Locations are those of `matches`; objects that the detector finds nowhere are left out.
    """
    places = priors(raw)
    boxes = torch.minimum(all_boxes(raw, places)[0].clamp(min=0), extent(raw))  # (P, 4)
    location, thing, _ = matches(boxes, flatten(raw.logits)[0].amax(1).sigmoid(), target)
    known, row = thing.unique(return_inverse=True)
    masks = mask_targets(target, known, (104, 104)).bool().numpy()
    packed = torch.from_numpy(np.packbits(masks.reshape(len(masks), 104 * 104), axis=1))
    seen = flatten(towers)[0][location]
    return {"level": places.level[location], "object": row, "seen": seen, "boxes": boxes[location], "masks": packed}


# 2. the mask side -----------------------------------------------------------------------------------------------------


def batches(found: list[dict[str, Tensor]], size: int, seed: int) -> Iterator[list[int]]:
    """Rows of the cache that have objects, in a new order every epoch; of each image one version at a time."""
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        for i in rng.permutation(len(found) // VERSIONS):
            row = VERSIONS * int(i) + int(rng.integers(VERSIONS))
            if len(found[row]["level"]):
                waiting.append(row)
            if len(waiting) == size:
                yield waiting
                waiting = []


def mask_loss(model: NanoInst, cache: Cache, found: list[dict[str, Tensor]], rows: list[int], bf16: bool) -> Tensor:
    """Dice of the masks of a batch: the mean over locations, at most ``_LOCATIONS`` of each image."""
    fine, levels = cache.levels(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = model.mask_branch(fine, levels).float()
    total, count = features.sum() * 0.0, 0
    for b, row in enumerate(rows):
        stored = found[row]
        kept = torch.randperm(len(stored["level"]))[:_LOCATIONS]
        filters = parameters_of(model, stored["seen"][kept], stored["level"][kept])
        logits = box_masks(filters, stored["boxes"][kept], features[b], model.config.masks)
        bits = np.unpackbits(stored["masks"][stored["object"][kept]].numpy(), axis=1, count=104 * 104)
        truth = torch.from_numpy(bits).view(-1, 104, 104).float()
        losses = dice_loss(logits.sigmoid(), truth, 1.0)
        total, count = total + losses.sum(), count + len(losses)
    return total / max(count, 1)


def parameters_of(model: NanoInst, seen: Tensor, level: Tensor) -> Tensor:
    """Parameters of the dynamic heads of n locations, (n, P), from what their towers see."""
    filters = seen.new_zeros(len(seen), model.config.masks.head_parameters)
    for i, heads in enumerate(model.dynamic):
        mine = level == i
        filters[mine] = heads(seen[mine][..., None, None])[..., 0, 0]
    return filters


def train_masks(model: NanoInst, cache: Cache, found: list[dict[str, Tensor]], given: argparse.Namespace) -> NanoInst:
    """Train the dynamic heads and the mask branch; returns the mean of two moving averages of the weights."""
    file = given.out / "masks.pt"
    for p in model.parameters():
        p.requires_grad_(False)
    parts = [model.dynamic, model.mask_branch]
    parameters = [p for part in parts for p in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, given.lr, weight_decay=given.weight_decay)
    average, first, state = deepcopy(model), 0, {}
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def save(step: int, seconds: float) -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "step": step, "seconds": seconds}
        state["early"] = early
        torch.save(state | {"optimizer": optimizer.state_dict()}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)

    rows_of = batches(found, given.batch, seed=first)
    for part in parts:
        part.train()
    step, shown, start = first, [], time.monotonic()
    before = state["seconds"] if first else 0.0

    def done() -> float:
        """The share of the training that is done, by steps or by time."""
        seconds = before + time.monotonic() - start
        return seconds / (60 * given.minutes) if given.minutes else step / given.steps

    early: dict[str, Tensor] = state.get("early", {})
    while (share := done()) < 1:
        if share >= EARLY and not early:
            early = {n: t.clone() for n, t in average.state_dict().items()}
        rate = given.lr * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = mask_loss(model, cache, found, next(rows_of), given.bf16)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        update_average(average, model, 0.995, step)
        step += 1
        shown.append(loss.item())
        if step % 50 == 0:
            seconds = before + time.monotonic() - start
            print(f"step {step} dice {np.mean(shown):.4f} rate {rate:.2e} {seconds:.0f} s", flush=True)
            shown = []
            save(step, seconds)
    save(step, before + time.monotonic() - start)
    early = early or average.state_dict()
    mean = {n: (t + early[n]) / 2 if t.is_floating_point() else t for n, t in average.state_dict().items()}
    average.load_state_dict(mean)
    return average


# 3. everything --------------------------------------------------------------------------------------------------------

Measure = Callable[[NanoInst, str], dict[str, float]]
"""Stores a model under a name and gives its figures."""


def losses(model: NanoInst, said: NanoDetRaw, batch: Batch, classes: Tensor, bf16: bool) -> dict[str, Tensor]:
    """The terms of a batch; ``said`` is the teacher's output, ``classes`` the number of each label in it or -1.

    The teacher's class scores are the targets at all locations: objects without a label are no background, and classes
    that the images lack are not forgotten (Li, Hoiem: "Learning without Forgetting", ECCV 2016). Where it is sure, its
    distributions of the sides are targets too (Zheng et al.: "Localization Distillation", CVPR 2022). Locations that
    find a labelled object learn from its label as well: their class score the mean of the teacher's and of the IoU of
    their box, their box the labelled one, their mask the labelled one.
    """
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


# 4. measured and shipped ----------------------------------------------------------------------------------------------


class Figures(NamedTuple):
    """What a stored model reaches on the val splits."""

    classes: CocoResult
    groups: CocoResult
    """Person, animal, vehicle."""
    images: int
    score: float | None
    """Threshold of the highest F1."""

    def numbers(self) -> dict[str, float]:
        """AP of masks and boxes of the 80 classes, and of the masks of the groups."""
        results = {"masks": self.classes.segm, "boxes": self.classes.bbox, "groups": self.groups.segm}
        return {name: found["AP"] or 0.0 for name, found in results.items() if found is not None}


class Judge:
    """Stores models in half precision and measures what was stored."""

    def __init__(self, data: Path, out: Path) -> None:
        preset = zoo.preset(PRESET)
        input = replace(preset.input, size=INPUT)
        self.config = RunConfig(PRESET, preset.model, input, preset.augment, preset.train)
        self.known = open_dataset(merge(data, "val", "coco", out / "val"), allow_outside=True)
        self.grouped = open_dataset(merge(data, "val", "everyday", out / "val-groups"), allow_outside=True)

    def store(self, model: NanoInst, file: Path, **facts: Any) -> None:
        """Write a checkpoint."""
        licence = "Apache-2.0; its detector and its training photographs: docs/builtin.md"
        save_model(file, deepcopy(model).half(), self.config, COCO, {"preset": PRESET, "licence": licence} | facts)

    def measure(self, model: NanoInst, file: Path) -> Figures:
        """Store the model, and measure it."""
        self.store(model, file)
        segmenter = load(file)
        rows, known = segmenter.detect(self.known, batch=4)
        classes = segmenter.task.evaluate(rows, known)
        groups = segmenter.task.evaluate(in_groups(rows, known.categories, self.grouped.categories), self.grouped)
        assert isinstance(classes, CocoResult)
        assert isinstance(groups, CocoResult)
        threshold = segmenter.task.threshold(classes, rows, known)
        return Figures(classes, groups, len(known), None if threshold is None else threshold.score)

    def ship(self, model: NanoInst, file: Path) -> None:
        """Store the model with its figures in it, print them, and write all of them beside it."""
        found = self.measure(model, file)
        both = {"80 classes": found.classes, "person, animal, vehicle": found.groups}
        for name, result in both.items():
            stdout().print(name, result.table())
        file.with_suffix(".json").write_text(json.dumps({n: r.to_json() for n, r in both.items()}, indent=1))
        ours = "{} COCO val2017 photographs: mask AP {masks:.3f}, box AP {boxes:.3f}; ".format(
            found.images, **found.numbers()
        ) + "as person, animal, vehicle: mask AP {groups:.3f}".format(**found.numbers())
        self.store(model, file, ours=ours, **({} if found.score is None else {"score": found.score}))
        print(ours, found.score)


def in_groups(rows: list[Row], classes: Categories, groups: Categories) -> list[Row]:
    """The results of all classes as those of COCO's super-categories; what is in none of ``groups`` is left out."""
    number = {}
    for i, name in zip(classes.ids, classes.names, strict=True):
        group = SUPER.get(name)
        if group in groups.names:
            number[i] = groups.ids[groups.names.index(group)]
    return [{**row, "category_id": number[row["category_id"]]} for row in rows if row["category_id"] in number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--detector", type=Path, required=True, help="weights of NanoDet-Plus-m")
    parser.add_argument("--steps", type=int, default=2400, help="steps of the mask side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--minutes", type=float, default=0, help="length of that training in place of steps")
    parser.add_argument("--start", type=Path, help="a checkpoint with masks, in place of that training")
    parser.add_argument("--tune-minutes", type=float, default=0, help="length of the training of everything")
    parser.add_argument("--tune-lr", type=float, default=5e-5, help="its rate for the detector")
    parser.add_argument("--bf16", action="store_true", help="half precision, where the processor has it")
    parser.add_argument("--ship", type=Path, help="file for the weights; by default builtin.safetensors in the folder")
    parser.add_argument("--out", type=Path, default=Path("runs/builtin"))
    given = parser.parse_args()

    torch.set_num_threads(1)
    model = from_detector(given.detector).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dataset = open_dataset(merge(given.data, "train", "all", given.out / "data", PARTS), allow_outside=True)
    if given.start:
        model.load_state_dict(read_tensors(given.start))
    else:
        cache, found = store(model, dataset, given.out / "cache")
        model = train_masks(model, cache, found, given)
    judge = Judge(given.data, given.out)
    if given.tune_minutes:
        teacher = NanoDet(zoo.preset("nanodet-plus-m-416").model)  # type: ignore[arg-type]
        teacher.load_state_dict(rename(read_checkpoint(given.detector)))

        def measure(candidate: NanoInst, name: str) -> dict[str, float]:
            return judge.measure(candidate, given.out / f"{name}.safetensors").numbers()

        model = fine_tune(model, teacher, dataset, given, measure)
    judge.ship(model.eval(), given.ship or given.out / "builtin.safetensors")


if __name__ == "__main__":
    main()
