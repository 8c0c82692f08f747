"""BoxInst against AdelaiDet. Every stored tensor of a case is compared; nothing is left out."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from maskkit.config import BoxOnly
from maskkit.models.boxinst import BoxInstConfig, shared_out, without_masks
from maskkit.nn.dynamic_mask import DynamicMaskRaw, MaskBranchRaw, aligned_upsample, dynamic_masks, mask_centres
from maskkit.nn.fcos import fcos_loss, pick
from maskkit.nn.fcos_targets import Positives, locate
from maskkit.nn.losses import (
    HALF,
    ImageColours,
    box_cells,
    dice_loss,
    disagreement,
    mean_lab,
    neighbours,
    similarity,
    visible_cells,
)
from maskkit.targets import Batch
from tests.parity import adelaidet as official
from tests.parity.goldens import Case


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gradnorm_names" in case.manifest:
        _train_step(case)
    else:
        _loss(case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _train_step(case: Case) -> None:
    terms = {"loss_fcos_cls": "classification", "loss_fcos_loc": "box", "loss_fcos_ctr": "quality"}
    terms |= {"loss_prj": "mask/projection", "loss_pairwise": "mask/pairwise"}
    overrides = case.config["overrides"]
    iterations = dict(zip(overrides[::2], overrides[1::2], strict=True)).get("MODEL.BOXINST.PAIRWISE.WARMUP_ITERS")
    # the first step of so many; officially counted before it is used
    progress = 1 / iterations if iterations else 1 / 90_000
    official.train_step(case, terms, progress)


def _loss(case: Case) -> None:
    model = official.model_of(case)
    box_only = model.config.box_only
    scenes = official.scenes_of(case)
    raw = DynamicMaskRaw(official.raw_of(case, scenes), MaskBranchRaw(official.maps_of(case, "mask_feats"), None))
    batch = official.given_batch(case, scenes)
    size = (batch.images.shape[2], batch.images.shape[3])
    grid = (size[0] // 4, size[1] // 4)
    _compare_colours(case, batch, grid, box_only)
    for i, target in enumerate(batch.targets):
        assert np.array_equal(case.unpacked(f"box_bitmasks.{i}"), box_cells(target.boxes, size, grid))

    batch.targets = [without_masks(t) for t in batch.targets]
    _, positives = fcos_loss(raw.detector, batch, model.config.detector, [mask_centres(t, size) for t in batch.targets])
    official.compare_positives(case, positives, raw.detector, batch)
    kept = shared_out(positives, raw.detector, model.config.masks_to_train)
    _compare_masks(case, model.config, kept, raw, batch)

    losses = model.loss_terms(raw, batch)
    official.compare_fcos_terms(case, losses, raw.detector)
    leaves = {"top": raw.detector.extra, "mask_feats": [raw.branch.features]}
    official.compare_term(case, "loss_prj", losses["mask/projection"], leaves)
    for name in sorted(n for n in case.outputs if n.startswith("loss_pairwise_iter")):
        meaning = re.search(
            r"iter(\d+) \(warm-up factor min\(iter / (\d+), 1\)\)", case.manifest["outputs"][name]["meaning"]
        )
        assert meaning is not None
        progress = int(meaning[1]) / int(meaning[2]) * box_only.warmup
        official.compare_term(
            case, name, model.loss_terms(raw, replace(batch, progress=progress))["mask/pairwise"], leaves
        )


def _compare_colours(case: Case, batch: Batch, grid: tuple[int, int], config: BoxOnly) -> None:
    """Colour similarity to the eight neighbours, zero where a neighbour does not count; and which are alike."""
    colours = ImageColours.of(batch, config.skip_bottom)
    lab, seen = mean_lab(colours, grid), visible_cells(colours, grid)
    alike = torch.zeros(len(batch), 8, *grid)
    for half in HALF:
        pair = similarity(lab, half, config.dilation)
        seen_a, seen_b = neighbours(seen, half, config.dilation)
        _put(alike, half, config.dilation, pair * seen_b, pair * seen_a)
    for i in range(len(batch)):
        case.compare(f"color_similarity.{i}", alike[i], 1e-4, 1e-5)
        assert np.array_equal(case.unpacked(f"color_edges.{i}"), alike[i] >= config.threshold)


def _compare_masks(case: Case, config: BoxInstConfig, kept: Positives, raw: DynamicMaskRaw, batch: Batch) -> None:
    """Which positives train masks, their projections and what their neighbours disagree about."""
    locations = locate(raw.detector.logits, config.detector.strides)
    numbers, xy = kept.object + official.firsts(batch)[kept.image], locations.xy[kept.location]
    ours = torch.cat([numbers[:, None], xy], 1)
    theirs = np.concatenate([case.stored("kept_gt_inds")[:, None], case.stored("kept_locations")], 1)
    # within an object the order is that of the score, or of the locations where none had to go
    order = torch.from_numpy(np.lexsort(ours.numpy().T))[np.argsort(np.lexsort(theirs.T))]
    assert np.array_equal(ours[order], theirs)

    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    size = (batch.images.shape[2], batch.images.shape[3])
    filters = pick(raw.detector.extra, kept.image, kept.location)
    logits = []
    for i in order.tolist():
        stride = locations.stride[kept.location[i], None]
        features = raw.branch.features[kept.image[i]]
        logits.append(
            dynamic_masks(
                filters[i, None], xy[i, None], stride, features, config.detector.strides[0], config.masks.head_widths
            )
        )
    masks = aligned_upsample(torch.stack(logits), 2)[:, 0].detach()  # (n, H/4, W/4)
    boxes = torch.stack([batch.targets[b].boxes[n] for b, n in zip(kept.image, kept.object, strict=True)])[order]
    inside = box_cells(boxes, size, (masks.shape[1], masks.shape[2]))
    case.compare("projection_y_per_instance", dice_loss(masks.sigmoid().amax(1), inside.any(1).float(), 1e-5), *near)
    wrong = torch.zeros(len(masks), 8, *masks.shape[1:])
    for half in HALF:
        pair = disagreement(*neighbours(masks, half, config.box_only.dilation))
        _put(wrong, half, config.box_only.dilation, pair, pair)
    case.compare("pairwise_map", wrong, *near)


def _put(maps: Tensor, half: tuple[int, int], dilation: int, forth: Tensor, back: Tensor) -> None:
    """Values of pairs into ``maps`` (n, 8, h, w) of the neighbours row by row: seen from one end, and the other."""
    number = 3 * (half[0] + 1) + half[1] + 1
    near, far = neighbours(maps.transpose(0, 1), half, dilation)
    near[number - 1] = forth  # the middle of the 3 x 3 is left out
    far[8 - number] = back
