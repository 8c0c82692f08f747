"""Synthetic YOLACT predictions and targets, made with numpy alone.

The goldens of the post-processing and of the loss are the official code's
answers to these inputs.  ``recipe`` is goldens/recipe.py; put that folder on
``sys.path`` (or import it by file) first.
"""

import numpy as np
from recipe import rng_for, seeded_array

VARIANCES = (0.1, 0.2)


def _iou(box, boxes):
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    inter = np.clip(high - low, 0, None).prod(1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inter / (area + (box[2:] - box[:2]).prod() - inter)


def objects(seed, count, num_classes, low=0.08, high=0.5):
    """``count`` boxes (relative x1 y1 x2 y2) and class indices without background."""
    rng = rng_for("objects", seed)
    boxes, classes = [], []
    for _ in range(count):
        w, h = rng.uniform(low, high, 2)
        x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
        boxes.append([x, y, x + w, y + h])
        classes.append(int(rng.integers(0, num_classes - 1)))
    return np.array(boxes), np.array(classes)


def detections(priors, seed, count, num_classes=81, mask_dim=32, proto_size=138, candidates=12):
    """Predictions of one image that look like a trained network's.

    priors: float array (P, 4), cx cy w h, as the network makes them.
    Returns float32 arrays, each with a leading batch axis of 1 but ``priors``:
    loc (encoded with the SSD variances), conf (softmax, class 0 = background),
    mask (coefficients after tanh), priors, proto (after ReLU, h w channel).
    """
    rng = rng_for("detections", seed)
    priors = np.asarray(priors, np.float64)
    corners = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    total = len(priors)
    loc = 0.5 * rng.standard_normal((total, 4))
    logits = 0.5 * rng.standard_normal((total, num_classes))
    logits[:, 0] += 9.0
    coeff = 0.5 * rng.standard_normal((total, mask_dim))

    boxes, classes = objects(seed, count, num_classes)
    for k, (box, label) in enumerate(zip(boxes, classes)):
        near = np.argsort(-_iou(box, corners), kind="stable")[:candidates]
        own = rng.standard_normal(mask_dim)
        rival = 1 + (label + 1 + int(rng.integers(0, num_classes - 2))) % (num_classes - 1)
        peak = rng.uniform(6.5, 12.0)
        for rank, i in enumerate(near):
            jitter = 0.04 * rng.standard_normal(4) * np.tile(box[2:] - box[:2], 2)
            b = box + jitter
            centre, size = (b[:2] + b[2:]) / 2, np.maximum(b[2:] - b[:2], 1e-3)
            loc[i, :2] = (centre - priors[i, :2]) / (VARIANCES[0] * priors[i, 2:])
            loc[i, 2:] = np.log(size / priors[i, 2:]) / VARIANCES[1]
            logits[i] = 0.5 * rng.standard_normal(num_classes)
            logits[i, 0] += 4.0
            logits[i, label + 1] += peak - 0.15 * rank
            if k % 2:
                logits[i, rival] += peak - 1.0 - 0.15 * rank
            coeff[i] = own + 0.15 * rng.standard_normal(mask_dim)

    y, x = np.mgrid[0:proto_size, 0:proto_size] / float(proto_size)
    proto = np.empty((proto_size, proto_size, mask_dim))
    for c in range(mask_dim):
        fy, fx = rng.uniform(-3, 3, 2)
        phase, shift = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5)
        proto[..., c] = np.sin(2 * np.pi * (fy * y + fx * x) + phase) + shift
    proto = np.maximum(proto, 0)

    logits -= logits.max(1, keepdims=True)
    conf = np.exp(logits)
    conf /= conf.sum(1, keepdims=True)
    out = {"loc": loc[None], "conf": conf[None], "mask": np.tanh(coeff)[None], "proto": proto[None], "priors": priors}
    return {name: value.astype(np.float32) for name, value in out.items()}


def raw_predictions(batch, num_priors, seed, num_classes=81, mask_dim=32, proto_size=138, segm_size=69):
    """Training-mode predictions for the loss: conf and segm are logits, mask is
    after tanh, proto after ReLU."""
    loc = seeded_array("loc", (batch, num_priors, 4), seed)
    conf = 1.5 * seeded_array("conf", (batch, num_priors, num_classes), seed)
    conf[..., 0] += 2
    mask = np.tanh(seeded_array("mask", (batch, num_priors, mask_dim), seed))
    proto = np.maximum(seeded_array("proto", (batch, proto_size, proto_size, mask_dim), seed), 0)
    segm = seeded_array("segm", (batch, num_classes - 1, segm_size, segm_size), seed)
    out = {"loc": loc, "conf": conf, "mask": mask, "proto": proto, "segm": segm}
    return {name: value.astype(np.float32) for name, value in out.items()}


def targets(seed, counts, image_size, num_classes=81, crowds=None, low=0.08, high=0.5):
    """Hand-made ground truth for a batch of ``len(counts)`` images.

    Returns (targets, masks, num_crowds) the way the official loss wants them:
    float32 (n, 5) relative x1 y1 x2 y2 + class without background; float32
    (n, size, size) 0/1 masks (ellipses for even, boxes for odd objects, filled
    where a pixel's centre lies inside); the number of crowd objects, which
    are the last ones of an image.
    """
    crowds = crowds or [0] * len(counts)
    centre = (np.arange(image_size) + 0.5) / image_size
    all_targets, all_masks = [], []
    for i, count in enumerate(counts):
        boxes, classes = objects(seed * 100 + i, count, num_classes, low, high)
        masks = np.zeros((count, image_size, image_size), np.float32)
        for k, (x1, y1, x2, y2) in enumerate(boxes):
            if k % 2 == 0:
                u = (centre - (x1 + x2) / 2) / ((x2 - x1) / 2)
                v = (centre - (y1 + y2) / 2) / ((y2 - y1) / 2)
                masks[k] = (u[None, :] ** 2 + v[:, None] ** 2) <= 1
            else:
                masks[k] = ((centre >= x1) & (centre <= x2))[None, :] & ((centre >= y1) & (centre <= y2))[:, None]
        all_targets.append(np.concatenate([boxes, classes[:, None]], 1).astype(np.float32))
        all_masks.append(masks)
    return all_targets, all_masks, list(crowds)
