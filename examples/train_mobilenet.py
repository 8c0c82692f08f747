"""Trains small models on a MobileNetV2 with photographs of COCO; so the built-in model was trained.

    python examples/train_mobilenet.py --data DATA --weights WEIGHTS --out runs/builtin

``--data`` is a folder with ``coco_instances`` and ``coco_panoptic``: small samples of COCO 2017 (cocodataset.org) in
COCO's format, each with ``images/``, ``train.json`` and ``val.json``. The model is trained on the train splits of both
(246 photographs of COCO train2017) and evaluated on the val splits. ``--weights`` is a folder with the initial weights:
a DeepLab v3 on MobileNetV2 trained on Pascal VOC (github.com/google-coral/test_data, Apache-2.0). An interrupted run
continues with ``--resume``. ``--classes`` chooses the classes, see ``docs/builtin.md``. ``--labels boxes`` trains
without masks, see ``docs/benchmarks/boxes_only.md``.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

import maskkit.zoo
from common import merge
from maskkit.config import AugmentConfig, BoxOnly, DataConfig, RunConfig, TrainConfig, change


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco_instances and coco_panoptic")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pretrained backbones")
    parser.add_argument("--model", default="condinst-mobilenetv2-320", help="preset with a MobileNetV2 backbone")
    parser.add_argument("--backbone", default="deeplabv3_mobilenetv2_voc", help="file of --weights to start from")
    parser.add_argument("--classes", choices=["person", "everyday", "voc", "super", "coco"], default="everyday")
    parser.add_argument(
        "--labels", choices=["masks", "boxes"], default="masks", help="boxes: masks are used for evaluation only"
    )
    parser.add_argument(
        "--dilation", type=int, default=2, help="distance of neighbours in the pairwise loss, for --labels boxes"
    )
    parser.add_argument("--pairwise", type=float, default=1.0, help="weight of that loss")
    parser.add_argument(
        "--warmup", type=float, default=0.1, help="share of the training over which that weight is warmed up"
    )
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--eval-every", type=float, default=0, help="epochs between evaluations; 0: only at the end")
    parser.add_argument("--frozen-stride", type=int, default=4, help="backbone layers up to this stride are frozen")
    parser.add_argument("--copy-paste", type=float, default=0.0)
    parser.add_argument("--jitter", type=float, nargs=2, default=None, help="range of the scale jitter")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--out", type=Path, default=Path("runs/builtin"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--choose-score", type=Path, help="no training: write the best score threshold into this file")
    parser.add_argument("--ship", type=Path, help="file to write the weights to, in half precision, with their results")
    given = parser.parse_args()

    if given.choose_score:
        return choose_score(given.choose_score, merge(given.data, "val", given.classes, given.out))

    from maskkit.engine.optim import precision_for
    from maskkit.engine.train import train

    folder = given.out.with_name(f"{given.out.name}-data")
    files = {split: merge(given.data, split, given.classes, folder) for split in ("train", "val")}
    preset = maskkit.zoo.preset(given.model)
    config = RunConfig(
        preset=preset.name,
        model=change(
            preset.model,
            backbone={
                "weights": str(given.weights / f"{given.backbone}.safetensors"),
                "frozen_stride": given.frozen_stride,
            },
            box_only=BoxOnly(dilation=given.dilation, pairwise=given.pairwise, warmup=given.warmup),
        ),
        input=replace(preset.input, size=(given.size, given.size)),
        augment=AugmentConfig(
            expand=1.0 if given.jitter else 2.0,
            iou_crop=not given.jitter,
            copy_paste=given.copy_paste,
            scale_jitter=given.jitter and tuple(given.jitter),
        ),
        train=TrainConfig(
            steps=given.steps,
            batch=given.batch,
            optimizer="adamw",
            lr=1e-3,
            backbone_lr=0.3,
            weight_decay=0.02,
            warmup=100,
            clip=10.0,
            ema=0.998,
            precision=precision_for(torch.device("cpu")),
            workers=1,
            eval_every=given.eval_every,
            save_every=100,
        ),
        data=DataConfig(
            train=str(files["train"]), val=str(files["val"]), labels=given.labels, on_bad="skip", allow_outside=True
        ),
    )
    result = train(config, given.out, resume=given.resume)
    print(result.metrics)
    if given.ship:
        ship(result.best, files["val"], given.ship)


def ship(best: Path, val: Path, out: Path) -> None:
    """Store the weights in half precision, evaluate the stored file, and write the results into it."""
    from maskkit import load
    from maskkit.checkpoints.checkpoint import load_model, save_model
    from maskkit.data import open_dataset
    from maskkit.eval.instance.metric import evaluate
    from maskkit.eval.task import TASKS

    trained = load_model(best)
    save_model(out, trained.model.half(), trained.config, trained.categories, trained.info)
    dataset = open_dataset(val, allow_outside=True)
    rows, _ = load(out).detect(dataset, batch=8)
    result = evaluate(rows, dataset.truth())
    threshold = TASKS["instance"].threshold(result, rows, dataset)
    assert result.segm is not None
    classes = ", ".join(f"{name} {numbers['segm_AP']:.3f}" for name, numbers in result.per_class.items())
    info = {
        "ours": f"{len(dataset)} COCO val2017 photographs: mask AP {result.segm['AP']:.3f} ({classes}), "
        f"AP50 {result.segm['AP50']:.3f}, large objects {result.segm['APl']:.3f}",
        "licence": "Apache-2.0; its training photographs: docs/builtin.md",
        **trained.info,
    } | ({} if threshold is None else {"score": threshold.score})
    save_model(out, trained.model, trained.config, trained.categories, info)
    result.save(best.with_name("shipped.json"))
    print(json.dumps(info, indent=2))


def choose_score(file: Path, val: Path) -> None:
    """Write the score threshold with the highest F1 on the validation images into a checkpoint, whose tensors stay."""
    from maskkit import load
    from maskkit.checkpoints.checkpoint import write_checkpoint
    from maskkit.checkpoints.foreign import read_tensors
    from maskkit.checkpoints.header import read_header
    from maskkit.data import open_dataset

    segmenter, dataset = load(file), open_dataset(val, allow_outside=True)
    rows, _ = segmenter.detect(dataset, batch=8)
    result = segmenter.task.evaluate(rows, dataset)
    threshold = segmenter.task.threshold(result, rows, dataset)
    assert threshold is not None
    header = read_header(file)
    header["info"]["score"] = threshold.score
    write_checkpoint(file, read_tensors(file), header)
    print(f"{len(dataset)} images, mask AP {result.metrics['AP']}: {threshold}, {threshold.score}")


if __name__ == "__main__":
    main()
