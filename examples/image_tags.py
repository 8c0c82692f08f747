"""Semantic segmentation from image tags: EPS with saliency maps against plain class activation maps.

    python examples/image_tags.py --data DATA --weights WEIGHTS

``--data`` is a folder with ``coco_instances`` and ``coco_panoptic``: small samples of COCO 2017 (cocodataset.org) in
COCO's format, each with ``images/``, ``train.json`` and ``val.json``. ``--weights`` is a folder with timm's
``mobilenetv2_100`` and a DeepLab v3 for Pascal VOC (github.com/google-coral/test_data).

The classes are person, animal and vehicle; only images with one of them are used. Masks of these classes are not used
in training before the last step, with the exception named in step 2.

1. A saliency model is trained on the images of ``coco_instances`` without these classes (bowls, sinks, books, ...),
   starting from ImageNet weights.
2. Its foreground probabilities are the saliency maps of the training images. A second set of saliency maps comes from
   DeepLab v3 trained on Pascal VOC, which has seen masks of people, animals and vehicles, as the saliency detectors in
   the literature have.
3. EPS is trained on tags with either set, its baseline on tags alone, with the same network, steps and seed.
4. Each makes pseudo masks of the training images, whose mIoU is evaluated at several thresholds of the background. Each
   uses its best threshold, as is usual for activation maps; true masks are used for nothing else.
5. One FCN-8s is trained on the pseudo masks of each, and one on the true masks; all are evaluated on the validation
   images.

The same command continues an interrupted run. The table is written to ``OUT/table.json``.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import class_of, merge
from maskkit.api import configure
from maskkit.checkpoints.checkpoint import Checkpoint, load_model
from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.checkpoints.hub import import_state
from maskkit.config import PseudoMasks
from maskkit.data import open_dataset
from maskkit.data.dataset import Dataset
from maskkit.engine.optim import precision_for
from maskkit.engine.train import train
from maskkit.eval.numbers import rank
from maskkit.eval.semantic.metric import evaluate
from maskkit.files import write_json
from maskkit.infer.pseudo_labels import label_map, localise, write_pseudo_masks
from maskkit.infer.saliency import write_saliency
from maskkit.prediction import Prediction

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCALES = (0.75, 1.0, 1.5)
TAGS, PIXELS = "eps-mobilenetv2-320", "fcn8s-mobilenetv2-320"
VOC = "deeplabv3-mobilenetv2-voc"


def with_objects(file: Path) -> Path:
    """Keep only the images with objects in a COCO file."""
    content = json.loads(file.read_text())
    shown = {a["image_id"] for a in content["annotations"]}
    content["images"] = [i for i in content["images"] if i["id"] in shown]
    file.write_text(json.dumps(content))
    return file


def others(data: Path, split: str, out: Path) -> Path:
    """A COCO file of the images of ``coco_instances`` without these classes; all objects are of one class."""
    content = json.loads((data / "coco_instances" / f"{split}.json").read_text())
    wanted = {c["id"] for c in content["categories"] if class_of(c, "everyday")}
    taboo = {a["image_id"] for a in content["annotations"] if a["category_id"] in wanted}
    images = [i for i in content["images"] if i["id"] not in taboo]
    for image in images:
        image["file_name"] = str((data / "coco_instances" / "images" / Path(image["file_name"]).name).resolve())
    annotations = [a | {"category_id": 1} for a in content["annotations"] if a["image_id"] not in taboo]
    file = out / f"others-{split}.json"
    rows = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    file.write_text(json.dumps(rows))
    return file


def by_threshold(found: Checkpoint, dataset: Dataset, file: Path) -> dict[str, float]:
    """mIoU of the pseudo masks at each of `THRESHOLDS`, cached in ``file``."""
    if file.exists():
        return json.loads(file.read_text())
    rows: dict[float, list] = {t: [] for t in THRESHOLDS}
    for i in range(len(dataset)):
        image, target, meta = dataset.load(i, "tags")
        assert target.tags is not None
        seen = localise(found.model, image, target.tags[1:], found.config.input, PseudoMasks(scales=SCALES))
        for threshold in THRESHOLDS:
            labels = label_map(seen, threshold)
            rows[threshold] += Prediction(meta, dataset.categories, semantic=labels).to_coco()
    means = {str(t): round(rank(evaluate(rows[t], dataset).main["mIoU"]), 4) for t in THRESHOLDS}
    write_json(file, means)
    return means


def folder_name(row: str) -> str:
    """The folder of a row of the table."""
    return row.replace(",", "").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco_instances and coco_panoptic")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the pretrained backbones")
    parser.add_argument("--steps", type=int, default=600, help="steps of EPS and of its baseline, 8 images each")
    parser.add_argument("--pixel-steps", type=int, default=200, help="steps of every training on masks")
    parser.add_argument("--mix", type=float, default=0.5, help="lambda of EPS: 0.5 in the paper on VOC, 0.9 on COCO")
    parser.add_argument("--out", type=Path, default=Path("runs/image-tags"))
    given = parser.parse_args()
    out, precision = given.out, precision_for(torch.device("cpu"))
    schedule = {"backbone_lr": 0.3, "eval_every": 0, "workers": 0, "precision": precision}
    out.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {"steps": given.steps, "pixel steps": given.pixel_steps}

    everyday = {s: with_objects(merge(given.data, s, "everyday", out / "data")) for s in ("train", "val")}
    rest = {s: others(given.data, s, out / "data") for s in ("train", "val")}
    images = open_dataset(everyday["train"]).as_semantic()

    def learn(name: str, preset: str, data: Path, val: Path, /, **sections: Any) -> tuple[Path, float]:
        steps = given.pixel_steps if preset == PIXELS else given.steps
        config = configure(preset, data, train=schedule | {"steps": steps}, **sections)
        config = replace(config, data=replace(config.data, val=str(val), on_bad="skip"))
        result = train(config, out / name, resume=True, weights=given.weights / "mobilenetv2_100.safetensors")
        return result.best, round(rank(result.metrics["mIoU"]), 4)

    salient, table["saliency model"] = learn("salient", PIXELS, rest["train"], rest["val"])
    state = read_checkpoint(given.weights / "deeplabv3_mobilenetv2_voc.safetensors")
    import_state(state, VOC, out / "voc.safetensors", "deeplabv3_mobilenetv2_voc")
    paths = [record.path for record in images.records]
    for name, weights in (("saliency", salient), ("saliency-voc", out / "voc.safetensors")):
        finder = load_model(weights)
        write_saliency(finder.model, finder.config.input, finder.categories, paths, out / name)

    def eps(saliency: str) -> dict[str, Any]:
        return {"data": {"labels": "tags", "saliency": str(out / saliency)}, "model": {"mix": given.mix}}

    knobs: dict[str, dict[str, Any]] = {
        "EPS": eps("saliency"),
        "EPS, VOC": eps("saliency-voc"),
        "plain CAM": {"data": {"labels": "tags"}, "model": {"background_map": False}},
    }
    pixels = {"true masks": everyday["train"]}
    for name, sections in knobs.items():
        folder = out / folder_name(name)
        best, _ = learn(folder.name, TAGS, everyday["train"], everyday["val"], **sections)
        tagger = load_model(best)
        dataset = images.with_categories(tagger.categories)
        found = by_threshold(tagger, dataset, folder / "thresholds.json")
        threshold = float(max(found, key=found.__getitem__))
        table[name] = {"pseudo masks": found, "threshold": threshold}
        pixels[name] = folder / "masks"
        shutil.rmtree(pixels[name], ignore_errors=True)
        settings = PseudoMasks(scales=SCALES, threshold=threshold)
        write_pseudo_masks(tagger.model, dataset, tagger.config.input, settings, pixels[name])
        print(name, table[name], flush=True)
    for name, data in pixels.items():
        _, mean = learn(f"pixels-{folder_name(name)}", PIXELS, data, everyday["val"])
        table.setdefault(name, {})["FCN-8s"] = mean
        print(name, table[name], flush=True)
    write_json(out / "table.json", table)


if __name__ == "__main__":
    main()
