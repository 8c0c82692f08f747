"""A small maskkit model against torchvision's Mask R-CNN: same backbone weights, data and processor time.

    python benchmarks/against_torchvision.py --data DATA/nuclei_dsb2018 --weights mobilenetv2_100.safetensors \\
        --side ours --minutes 30

The data are public, see docs/benchmarks/README.md; the weights are timm's ``mobilenetv2_100``.

``--side`` is ``ours`` (the preset ``--model``) or ``torchvision``; run the command once for each. The budget is
processor time, 120 seconds per minute of ``--minutes`` (two cores), so that other work on the machine favours neither
side. Each side measures its speed on its first steps and fits its schedule to the budget. Validation is not counted;
both sides are evaluated by `maskkit.eval.instance.metric`.

The torchvision side is ``MaskRCNN`` over ``BackboneWithFPN`` (MobileNetV2 from timm with the same weights and padding,
frozen batch norm, levels of stride 4 to 32 and the pooled one), its own transform and its reference recipe: SGD with
momentum, warm-up and cosine decay, batch 2, the same flips as ours; anchors from 16 px on nuclei, otherwise from 32 px;
a learning rate of 0.01, four times the reference rate for this batch size, since the run is short, with gradient
clipping. ``--narrow`` gives it the widths and numbers of regions of our small Mask R-CNN
(``--model maskrcnn-mobilenetv2-320``), so that the two sides differ in code and recipe only.
"""

import argparse
import json
import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

from common import Training, is_nuclei, train_within
from common_timing import describe
from maskkit import zoo
from maskkit.checkpoints.checkpoint import save_model
from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.data import open_splits
from maskkit.data.dataset import Dataset
from maskkit.data.transforms import Flip, VerticalFlip, apply
from maskkit.eval.instance.metric import evaluate
from maskkit.eval.numbers import shown
from maskkit.eval.rows import Row, rows_of
from maskkit.infer.torch_runtime import predictor
from maskkit.prediction import Instances, Masks, Prediction

NARROW: Any = zoo.preset("maskrcnn-mobilenetv2-320").model
"""Our small Mask R-CNN, with its widths and numbers of regions."""


def ours(given: argparse.Namespace, train_set: Dataset, val_set: Dataset) -> tuple[list[Row], dict]:
    training = Training(given.model, given.data, given.weights, size=given.size)
    model, config, facts = training.run(train_set, given.minutes, None)
    if given.out:
        save_model(given.out.with_suffix(".safetensors"), model, config, train_set.categories, facts)
    return rows_of(predictor(model, config.input, val_set.categories).dataset(val_set, batch=4)), facts


class TimmBody(nn.Module):
    """A timm feature extractor that returns the ordered dict that torchvision's pyramid takes."""

    body: Any

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.body = timm.create_model("mobilenetv2_100", features_only=True, out_indices=(1, 2, 3, 4), pad_type="same")
        state = read_checkpoint(weights)
        self.body.load_state_dict({n: t for n, t in state.items() if n in self.body.state_dict()}, strict=False)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "TimmBody":
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict((str(i), f) for i, f in enumerate(self.body(x)))


def mask_rcnn(given: argparse.Namespace, classes: int) -> MaskRCNN:
    body = TimmBody(given.weights)
    width = NARROW.width if given.narrow else 256
    backbone = BackboneWithFPN(nn.Sequential(nn.Identity()), {"0": "0"}, body.body.feature_info.channels(), width)
    backbone.add_module("body", body)
    smallest = 16 if is_nuclei(given.data) else 32
    heads: dict[str, Any] = {}
    if given.narrow:
        box, mask = NARROW.box_width, NARROW.mask_width
        heads = {
            "box_head": TwoMLPHead(width * 7**2, box),
            "box_predictor": FastRCNNPredictor(box, classes + 1),
            "mask_head": MaskRCNNHeads(width, (mask,) * NARROW.mask_convs, 1),
            "mask_predictor": MaskRCNNPredictor(mask, mask, classes + 1),
            "box_batch_size_per_image": NARROW.regions.sampled,
            "rpn_pre_nms_top_n_train": NARROW.proposals.before[0],
            "rpn_pre_nms_top_n_test": NARROW.proposals.before[1],
            "rpn_post_nms_top_n_train": NARROW.proposals.after[0],
            "rpn_post_nms_top_n_test": NARROW.proposals.after[1],
        }
    return MaskRCNN(
        backbone,
        None if given.narrow else classes + 1,
        min_size=given.size,
        max_size=given.size * 2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(tuple((smallest * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5),
        **heads,
    )


def torchvisions(given: argparse.Namespace, train_set: Dataset, val_set: Dataset) -> tuple[list[dict], dict]:
    torch.manual_seed(0)
    model = mask_rcnn(given, len(train_set.categories)).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=given.lr, momentum=0.9, weight_decay=1e-4
    )
    ops = [Flip(0.5)] + ([VerticalFlip(0.5)] if is_nuclei(given.data) else [])
    batch = 2

    def samples() -> Iterator[tuple[torch.Tensor, dict]]:
        for epoch in range(10**6):
            rng = np.random.default_rng([0, epoch])
            for i in rng.permutation(len(train_set)):
                image, target, _ = apply(ops, train_set.load(int(i)), rng)  # type: ignore[arg-type]
                target = target[~target.crowd]
                kept = ((target.boxes[:, 2:] - target.boxes[:, :2]) > 1).all(1)
                target = target[kept]
                if len(target) == 0:
                    continue
                assert target.masks is not None
                yield (
                    image.float() / 255,
                    {
                        "boxes": target.boxes,
                        "labels": target.labels + 1,
                        "masks": target.masks.dense().to(torch.uint8),
                    },
                )

    stream = samples()

    def step(number: int, total: int) -> None:
        warm = min(1.0, (number + 1) / 30)
        rate = given.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, number / total)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = zip(*(next(stream) for _ in range(batch)), strict=True)
        losses = model(list(images), list(targets))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    steps, seconds = train_within(given.minutes * 120, step)
    model.eval()
    rows = []
    with torch.inference_mode():
        for i in range(len(val_set)):
            image, _, meta = val_set.load(i)
            out = model([image.float() / 255])[0]
            masks = Masks.from_dense((out["masks"][:, 0] > 0.5).numpy())
            found = Instances(out["boxes"].numpy(), out["labels"].numpy() - 1, out["scores"].numpy(), masks)
            rows += Prediction(meta, val_set.categories, found).to_coco()
    return rows, {
        "steps": steps,
        "batch": batch,
        "cpu_seconds": round(seconds),
        "input": given.size,
        "lr": given.lr,
        "narrow": given.narrow,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="mobilenetv2_100.safetensors")
    parser.add_argument("--side", choices=["ours", "torchvision"], required=True)
    parser.add_argument("--model", default="yolact-mobilenetv2-320", help="our side: a preset with this backbone")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--size", type=int, default=448, help="input side (ours), shorter side (torchvision)")
    parser.add_argument(
        "--narrow", action="store_true", help="make torchvision's model as small as our small Mask R-CNN"
    )
    parser.add_argument("--lr", type=float, default=0.01, help="of the torchvision side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="json file for the result rows and the figures")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_set, val_set = open_splits(str(given.data), None, 0.2, 0)
    begin = time.perf_counter()
    rows, facts = (ours if given.side == "ours" else torchvisions)(given, train_set, val_set)
    facts |= {"side": given.side, "wall_seconds_with_validation": round(time.perf_counter() - begin)}
    result = evaluate(rows, val_set.coco())
    assert result.segm is not None
    assert result.bbox is not None
    facts |= {f"mask {k}": shown(v) for k, v in result.segm.items() if k in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    facts |= {f"box {k}": shown(v) for k, v in result.bbox.items() if k in ("AP", "AP50")}
    print(describe(given.threads))
    print(json.dumps(facts))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps({"facts": facts, "machine": describe(given.threads), "rows": rows}))


if __name__ == "__main__":
    main()
