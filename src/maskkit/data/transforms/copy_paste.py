"""Copy-paste: objects of one training image in another."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool

from maskkit.data.label_map import IGNORE
from maskkit.data.patches import Patches
from maskkit.data.transforms.geometric import Flip
from maskkit.data.transforms.interpolate import rounded
from maskkit.data.transforms.sample import Pixels, Sample, multiplied, patches, random_corner, scale, window
from maskkit.prediction import ImageMeta
from maskkit.targets import Target


@dataclass(frozen=True)
class CopyPaste:
    """Pastes objects of another image, with probability ``p`` (Ghiasi et al., 2021).

    The other image is resized, placed and mirrored at random, and each of its objects with a known mask is pasted with
    probability 0.5. The objects beneath are cut: their boxes are recomputed from the rest of their masks, and an object
    is dropped when less than ``visible`` of it is left.
    """

    p: float
    partner: Callable[[np.random.Generator], Sample]
    scale: tuple[float, float] = (0.5, 1.25)
    visible: float = 0.1

    def __call__(self, image: Pixels, target: Target, meta: ImageMeta, rng: np.random.Generator) -> Sample:
        """The sample, with or without pasted objects."""
        if rng.random() >= self.p:
            return image, target, meta
        other, objects, other_meta = self.partner(rng)
        objects = objects[torch.from_numpy(rng.random(len(objects)) < 0.5) & objects.has_mask & ~objects.crowd]
        if not len(objects):
            return image, target, meta
        size = (image.shape[1], image.shape[2])
        factor = rng.uniform(*self.scale) * min(size[0] / other.shape[1], size[1] / other.shape[2])
        fitted = multiplied(other, factor)
        sample = Flip()(*scale(other, objects, other_meta, fitted), rng)
        other, objects, _ = window(*sample, *random_corner(fitted, size, rng), size, (0, 0, 0))

        masks = patches(objects)
        cover = masks.union()
        if target.masks is None:
            target = replace(target, masks=Patches.empty_of(len(target), size))
        below = _occlude(target, cover, self.visible)
        over = torch.from_numpy(cover)
        semantic = target.semantic
        if semantic is not None:
            semantic = torch.where(over, objects.semantic if objects.semantic is not None else IGNORE, semantic)
        saliency = target.saliency
        if saliency is not None:
            saliency = torch.where(over, objects.saliency if objects.saliency is not None else 1.0, saliency)
        joined = replace(
            below,
            boxes=torch.cat([below.boxes, masks.boxes()]),
            labels=torch.cat([below.labels, objects.labels]),
            masks=patches(below) + masks,
            crowd=torch.cat([below.crowd, objects.crowd]),
            has_mask=torch.cat([below.has_mask, objects.has_mask]),
            semantic=semantic,
            saliency=saliency,
        )
        return torch.where(over, rounded(other), image), joined, meta


def _occlude(target: Target, cover: Bool[np.ndarray, "h w"], visible: float) -> Target:
    """``target`` after the pixels of ``cover`` have been painted over."""
    before = patches(target)
    after = before.cut(cover)
    left, whole = after.areas(), before.areas()
    cut = target.has_mask & ~target.crowd & (left < whole)
    boxes = torch.where(cut[:, None], after.boxes(), target.boxes)
    stay = ~cut | (left > visible * whole)
    for i in (~target.has_mask & ~target.crowd).nonzero()[:, 0].tolist():
        x1, y1, x2, y2 = target.boxes[i].round().int().tolist()
        covered = cover[y1:y2, x1:x2]
        stay[i] = bool(covered.sum() <= (1 - visible) * covered.size)
    return replace(target, boxes=boxes, masks=after)[stay]
