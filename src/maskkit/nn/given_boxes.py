"""Masks of objects whose boxes are known, by methods in which every location brings the filters of a mask along.

Nothing has to be detected: the filters are those of the location whose own box is most like the given one.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maskkit.geometry import boxes as box_math
from maskkit.nn.blocks import image_of
from maskkit.nn.dynamic_mask import DynamicMaskConfig, DynamicMaskRaw, aligned_upsample, dynamic_masks
from maskkit.nn.fcos import FcosDetectorConfig, flatten, pick
from maskkit.nn.fcos_targets import locate


def draw_in(
    raw: DynamicMaskRaw, boxes: Float[Tensor, "b n 4"], detector: FcosDetectorConfig, config: DynamicMaskConfig
) -> Float[Tensor, "b n h w"]:
    """Probabilities of the masks of objects whose ``boxes`` are known, in pixels of the input.

    Each is drawn by the location whose own box is most like it, whatever its class. The grid is that of `find`.
    """
    raw = raw.float()
    found, strides = raw.detector, detector.strides
    at = locate(found.logits, strides)
    distances = flatten(found.distances) * at.stride[:, None]
    own = torch.cat([at.xy - distances[..., :2], at.xy + distances[..., 2:]], -1)  # (B, P, 4)
    location = most_alike(own, flatten(found.logits).amax(2).sigmoid(), boxes)
    parameters = pick(found.extra, image_of(location), location.flatten()).unflatten(0, location.shape)
    where = at.xy[location], at.stride[location]
    logits = dynamic_masks(parameters, *where, raw.branch.features, strides[0], config.head_widths)
    return aligned_upsample(logits, 2).sigmoid()


def most_alike(
    own: Float[Tensor, "b p 4"], scores: Float[Tensor, "b p"], boxes: Float[Tensor, "b n 4"]
) -> Int[Tensor, "b n"]:
    """For each of the ``boxes`` the location with the best product of IoU of its ``own`` box and root of its score."""
    return (box_math.iou(own, boxes) * scores[..., None].sqrt()).argmax(1)


def certainty(masks: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b"]:
    """Mean probability of the cells that are in each mask; 0 for an empty one (as SOLO's scores)."""
    inside = (masks > 0.5).to(masks.dtype)
    return (masks * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1)
