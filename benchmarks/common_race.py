"""What race.py hands to the interpreter of another library: train its smallest model for some time, and predict.

    PYTHON benchmarks/common_race.py --library dfine-seg --data FOLDER --seconds 120 --out rows.json

It imports that library and what comes with it, and nothing of maskkit. ``FOLDER`` is written by race.py: ``train.json``
and ``val.json`` in COCO's format with polygons, ``images`` for both, and the same once more as RF-DETR reads it. Both
models start from random weights and have their library's own recipe (losses, optimizer, learning rates, augmentation,
EMA), with four images per step, no processes for loading, and no validation during the training.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

BATCH, CALIBRATION, PARTS = 4, 6, 10
"""Images per step; steps that measure the speed; epochs of the D-FINE training, whatever its length."""
METRICS = ("f1", "precision", "recall", "iou", "mAP_50", "mAP_50_95", "TPs", "FPs", "FNs")
"""What D-FINE's trainer wants to log after an epoch: zeros, since there is no validation."""


def dfine_seg(given: argparse.Namespace) -> tuple[list[dict], dict]:
    """D-FINE-seg N in 320 x 320, with bf16 as in its recipe.

    Its learning rate needs the number of steps in advance: a training of six steps, not counted, gives the time of one.
    The recipe's 55 epochs become ten that share the steps, the last one without mosaics (the recipe: the last five).
    """
    import cv2
    from dfine_seg import load_model  # pyright: ignore[reportMissingImports]
    from dfine_seg.config.resolve import DEFAULT_CONFIG  # pyright: ignore[reportMissingImports]
    from dfine_seg.dl import train  # pyright: ignore[reportMissingImports]
    from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports]

    OmegaConf.register_new_resolver("now", lambda pattern: time.strftime(pattern))
    categories = json.loads((given.data / "train.json").read_text())["categories"]
    marks: list[float] = []

    class Part:
        """So many batches of an endless loader, as one epoch."""

        def __init__(self, loader: Any, steps: int) -> None:
            self.loader, self.steps, self.dataset = loader, steps, loader.dataset
            self.endless = self.batches()

        def batches(self) -> Iterator[Any]:
            while True:
                yield from (batch for batch in self.loader if len(batch[1]) == BATCH)

        def __len__(self) -> int:
            return self.steps

        def __iter__(self) -> Iterator[Any]:
            for _ in range(self.steps):
                marks.append(time.process_time())
                yield next(self.endless)

    def trained(epochs: int, steps: int) -> Any:
        class Loader(train.Loader):
            def build_dataloaders(self, distributed: bool = False) -> tuple[Any, Any, Any]:
                loader, val, _ = super().build_dataloaders(distributed)
                return Part(loader, steps), val, None

        class Trainer(train.Trainer):
            def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
                return dict.fromkeys(METRICS, 0.0)

        config: Any = OmegaConf.load(DEFAULT_CONFIG)
        config.model_name, config.task = "n", "segment"
        config.train.update(
            root=str(given.out.parent),
            data_path=str(given.data),
            coco_dataset=True,
            label_to_name={i: c["name"] for i, c in enumerate(categories)},
            pretrained_model_path=None,
            device="cpu",
            img_size=[320, 320],
            batch_size=BATCH,
            epochs=epochs,
            num_workers=0,
            seed=given.seed,
            to_visualize_eval=False,
            debug_img_processing=False,
        )
        config.train.mosaic_augs.no_mosaic_epochs = 1
        original, train.Loader = train.Loader, Loader
        try:
            trainer = Trainer(config)
            marks.clear()
            trainer.train()
        finally:
            train.Loader = original
        marks.append(time.process_time())
        return trainer

    trained(1, CALIBRATION)
    per_step = (marks[-1] - marks[1]) / (CALIBRATION - 1)
    steps = max(2, round(given.seconds / per_step / PARTS))  # fewer are too few for its schedule
    weights = trained(PARTS, steps).path_to_save / "last.pt"
    seconds = marks[-1] - marks[0]
    model = load_model(weights, task="segment", device="cpu", conf_thresh=0.001)
    rows = []
    for image, path in images(given):
        found = {k: v.numpy() for k, v in model(cv2.imread(str(path)))[0].items()}
        ids = [categories[int(label)]["id"] for label in found["labels"]]
        rows += coco_rows(image["id"], ids, found["boxes"], found["scores"], found["masks"] > 0.5)
    return rows, {"steps": steps * PARTS, "cpu_seconds": round(seconds), "input": 320}


def rfdetr(given: argparse.Namespace) -> tuple[list[dict], dict]:
    """RF-DETR-Seg Nano in 312 x 312, its own size, in fp32, which its trainer chooses on a processor.

    Its learning rate is constant in so short a training, which therefore ends when the seconds are spent.
    """
    from pytorch_lightning import Callback  # pyright: ignore[reportMissingImports]
    from rfdetr import RFDETRSegNano  # pyright: ignore[reportMissingImports]
    from rfdetr.config import SegmentationTrainConfig  # pyright: ignore[reportMissingImports]
    from rfdetr.training import (  # pyright: ignore[reportMissingImports]
        RFDETRDataModule,
        RFDETRModelModule,
        build_trainer,
    )

    categories = json.loads((given.data / "train.json").read_text())["categories"]
    torch.manual_seed(given.seed)
    model: Any = RFDETRSegNano(pretrain_weights=None, num_classes=len(categories), device="cpu")
    settings: Any = {"batch_size": BATCH, "num_workers": 0, "seed": given.seed, "tensorboard": False}
    config = SegmentationTrainConfig(dataset_dir=str(given.data), output_dir=str(given.out.parent), **settings)

    class Budget(Callback):
        begin = seconds = 0.0

        def on_train_batch_start(self, *_: Any) -> None:
            self.begin = self.begin or time.process_time()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.seconds = time.process_time() - self.begin
            trainer.should_stop = trainer.should_stop or self.seconds > given.seconds

    budget = Budget()
    module, data = RFDETRModelModule(model.model_config, config), RFDETRDataModule(model.model_config, config)
    trainer = build_trainer(config, model.model_config, accelerator="cpu", limit_val_batches=0, min_epochs=0)
    trainer.callbacks.append(budget)
    trainer.fit(module, data)
    model.model.model, model.model.class_names = module.model, data.class_names
    by_name = {c["name"]: c["id"] for c in categories}
    rows = []
    for image, path in images(given):
        found = model.predict(Image.open(path).convert("RGB"), threshold=0.001)
        kept = [i for i, name in enumerate(found.data["class_name"]) if name in by_name]
        ids = [by_name[found.data["class_name"][i]] for i in kept]
        rows += coco_rows(image["id"], ids, found.xyxy[kept], found.confidence[kept], found.mask[kept])
    return rows, {"steps": trainer.global_step, "cpu_seconds": round(budget.seconds), "input": 312}


def images(given: argparse.Namespace) -> Iterator[tuple[dict, Path]]:
    """COCO's record and the file of each validation image."""
    for image in json.loads((given.data / "val.json").read_text())["images"]:
        yield image, given.data / "images" / image["file_name"]


def coco_rows(
    image_id: Any, ids: list[int], boxes: np.ndarray, scores: np.ndarray, masks: np.ndarray
) -> list[dict[str, Any]]:
    """Results in COCO's format; ``boxes`` are ``(N, 4)`` x1 y1 x2 y2 and ``masks`` ``(N, H, W)``."""
    from faster_coco_eval.core import mask as codec

    rows = []
    for category, box, score, mask in zip(ids, boxes.astype(float), scores.tolist(), masks, strict=True):
        rle = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
        rle["counts"] = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
        box = [*box[:2], *(box[2:] - box[:2])]
        rows.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score, "segmentation": rle})
    return rows


LIBRARIES = {"dfine-seg": dfine_seg, "rfdetr": rfdetr}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, facts = LIBRARIES[given.library](given)
    given.out.write_text(json.dumps({"facts": facts, "rows": rows}))


if __name__ == "__main__":
    main()
