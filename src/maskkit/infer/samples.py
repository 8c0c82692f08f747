"""Samples of a data set: images with their annotations drawn over them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image

from maskkit.data.dataset import Dataset
from maskkit.files import in_file_name
from maskkit.geometry import rle
from maskkit.infer.draw import overlay, write_image
from maskkit.prediction import ImageMeta, Instances, Masks, Panoptic, PanopticSegment, Prediction

_SIDE = 1280
"""Longest side of a sample in pixels."""


def save_samples(dataset: Dataset, folder: str | Path, count: int = 8, seed: int = 0) -> list[Path]:
    """Write ``count`` images with their objects, or else label maps, drawn to ``folder``; returns the files.

    Images with objects or label maps come first.

    Raises `DataError` when an image cannot be read.
    """
    order = np.random.default_rng(seed).permutation(len(dataset))
    chosen = sorted(order, key=lambda i: not dataset.records[i].classes)[:count]
    files = []
    for index in chosen:
        record = dataset.records[index]
        image, truth = _sample(dataset, int(index))
        files.append(Path(folder) / f"{in_file_name(record.image_id, 6)}_{record.path.stem}.jpg")
        write_image(overlay(image, truth), files[-1])
    return files


def _sample(dataset: Dataset, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], Prediction]:
    """The pixels of an image, downsized where it is large, and its labels as a prediction."""
    image, target, meta = dataset.load(index)
    scale = min(1.0, _SIDE / max(meta.size))
    size = (max(1, round(meta.size[0] * scale)), max(1, round(meta.size[1] * scale)))
    if scale < 1:
        image = F.interpolate(image[None].float(), size=size, mode="area")[0].round().to(torch.uint8)
    record, names = dataset.records[index], dataset.categories
    drawn = ImageMeta(meta.image_id, meta.path, size, size)
    if not len(target) and record.semantic is not None and record.semantic.known:
        labels = Image.fromarray(record.semantic.read(record.size)).resize((size[1], size[0]), Image.Resampling.NEAREST)
        return image.permute(1, 2, 0).numpy(), Prediction(drawn, names, semantic=np.asarray(labels))
    masks = None
    if target.masks is not None:  # one at a time: a hundred dense masks of a large image would fill the memory
        masks = Masks(size, [rle.encode(target.masks[i].dense(size).numpy())[0] for i in range(len(target))])
    boxes = target.boxes.numpy() * np.tile(np.divide(size[::-1], meta.size[::-1]), 2)
    labels = target.labels.tolist()
    if masks is not None and not all(names.things):
        ids = np.zeros(size, np.int32)
        for i in range(len(masks)):
            ids[masks[i].dense()[0]] = i + 1
        segments = [PanopticSegment(i, n, 1.0, names.things[n]) for i, n in enumerate(labels, 1)]
        truth = Prediction(drawn, names, panoptic=Panoptic(ids, segments))
    else:
        objects = Instances(boxes, target.labels.numpy(), np.ones(len(target), np.float32), masks)
        truth = Prediction(drawn, names, objects)
    return image.permute(1, 2, 0).numpy(), truth
