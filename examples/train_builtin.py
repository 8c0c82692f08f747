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
3. Everything is trained at a small rate, with the detector as its own teacher (``distillation.py``). ``--tune-minutes``
   is the length; by default there is no such part. With ``--start FILE``, a checkpoint, it is the only one.
4. The result is stored in half precision and measured on the val splits of ``coco_instances`` and ``coco_panoptic``.

The same command continues an interrupted run: every part begins where the last file of it ends.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import SUPER, merge
from distillation import fine_tune, matches
from maskkit import load, zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.foreign import read_checkpoint, read_tensors
from maskkit.cli.console import stdout
from maskkit.config import AugmentConfig, RunConfig
from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops, train_ops
from maskkit.engine.optim import update_average
from maskkit.eval.instance.metric import CocoResult
from maskkit.eval.rows import Row
from maskkit.models.nanodet import NanoDet
from maskkit.models.nanoinst import NanoInst
from maskkit.nn.box_masks import box_masks
from maskkit.nn.dynamic_mask import mask_targets
from maskkit.nn.fcos import flatten
from maskkit.nn.losses import dice_loss
from maskkit.nn.nanodet import NanoDetRaw, all_boxes, extent, priors
from maskkit.prediction import Categories
from maskkit.zoo.class_names import COCO
from maskkit.zoo.nanodet import rename

PRESET = "nanoinst-416"
PARTS = ("coco_instances", "coco_panoptic", "coco128_extra", "coco_person", "animals")
SIDES = (52, 26, 13)
"""Cells of a side of the levels that the mask branch reads, for 416 pixels."""
VERSIONS = 2
"""Of a training image: as it is, and random crops."""
FEW = 2
"""Images with at most so many objects are stored as they are only."""
_LOCATIONS = 20
EARLY = 0.3
"""Share of the training after which the weights are kept; the result is the mean of these and the last."""


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


def objects(raw: NanoDetRaw, towers: list[Tensor], target: Any) -> dict[str, Tensor]:
    """For each object with a mask: where the detector finds it, what it sees and says there, and the mask at stride 4.

    Locations are those of `distillation.matches`; objects that the detector finds nowhere are left out.
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


# 3. and 4. everything, and what is shipped ----------------------------------------------------------------------------


class Figures(NamedTuple):
    """What a stored model reaches on the val splits."""

    classes: CocoResult
    groups: CocoResult
    """Person, animal, vehicle."""
    images: int
    score: float | None
    """Threshold of the highest F1."""

    def numbers(self) -> tuple[float, float, float]:
        """AP of masks and boxes of the 80 classes, and of the masks of the groups."""
        masks, boxes, groups = (r["AP"] for r in (self.classes.segm, self.classes.bbox, self.groups.segm) if r)
        return masks, boxes, groups


class Judge:
    """Stores models in half precision and measures what was stored."""

    def __init__(self, data: Path, out: Path) -> None:
        preset = zoo.preset(PRESET)
        self.config = RunConfig(PRESET, preset.model, preset.input, preset.augment, preset.train)
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
        masks, boxes, groups = found.numbers()
        ours = (
            f"{found.images} COCO val2017 photographs: mask AP {masks:.3f}, box AP {boxes:.3f}; "
            f"as person, animal, vehicle: mask AP {groups:.3f}"
        )
        self.store(model, file, ours=ours, **({} if found.score is None else {"score": found.score}))
        print(ours, found.score)


def in_groups(rows: list[Row], classes: Categories, groups: Categories) -> list[Row]:
    """The results of all classes as those of COCO's super-categories; what is in none of ``groups`` is left out."""
    number = {}
    for i, name in zip(classes.ids, classes.names, strict=True):
        group = SUPER.get(name)
        if group in groups.names:
            number[i] = groups.ids[groups.names.index(group)]
    return [row | {"category_id": number[row["category_id"]]} for row in rows if row["category_id"] in number]


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
            masks, boxes, groups = judge.measure(candidate, given.out / f"{name}.safetensors").numbers()
            return {"masks": masks, "boxes": boxes, "groups": groups}

        model = fine_tune(model, teacher, dataset, given, measure)
    judge.ship(model.eval(), given.ship or given.out / "builtin.safetensors")


if __name__ == "__main__":
    main()
