"""RTMDet-Ins of mmdetection: network, results, label assignment, losses, optimizer and average."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskkit import zoo
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.engine.optim import learning_rate, param_groups, update_average
from maskkit.geometry.resample import fitted_size
from maskkit.models.rtmdet_ins import RtmdetIns
from maskkit.nn.dynamic_mask import (
    DynamicMaskRaw,
    MaskBranchRaw,
    dynamic_masks,
    mask_centres,
    mask_logits,
    mask_targets,
)
from maskkit.nn.fcos import FcosRaw, flatten, pick
from maskkit.nn.fcos_targets import locate
from maskkit.nn.losses import dice_loss
from maskkit.nn.rtmdet import SoftAssignment, assign, boxes_of, costs_of, location_losses, rtm_detect
from maskkit.nn.soft_labels import shares_of
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from maskkit.zoo.card import Preset
from maskkit.zoo.rtmdet_ins import rename
from tests.parity.goldens import Case, watched
from tests.parity.mmdet import official
from tests.parity.mmdet.official import near

STRIDES = (8, 16, 32)


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "forward": _forward,
        "postprocess": _postprocess,
        "loss": _loss,
        "train_step": _train_step,
        "optimizer": _optimizer,
        "preprocess": _preprocess,
    }
    kinds[next(kind for kind in kinds if case.path.name.endswith(kind))](case)


def _preset(case: Case) -> Preset:
    """The preset of the official file of a case, ``configs/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py`` for one."""
    return zoo.preset("rtmdet-ins-" + case.config["file"].split("_")[1])


def _model(case: Case, fill: bool = False) -> RtmdetIns:
    """The model of the case, with the recipe's weights or, for losses and decoding, without any."""
    preset = _preset(case)
    if fill:
        state = case.weights() | case.constants
        state |= {name: state[canonical] for name, canonical in case.manifest["aliases"]}
        return case.filled(preset.name, state)
    with torch.device("meta"):
        return RtmdetIns(preset.model)  # type: ignore[arg-type]


# network --------------------------------------------------------------------------------------------------------------


def _forward(case: Case) -> None:
    model = _model(case, fill=True).eval()
    images = _images(case).images
    case.compare("input", images.flip(1), *near(case))
    body = model.backbone.body
    with torch.no_grad(), watched(body.stem, *body.stages, model.neck) as seen:
        raw = model(images)
    *stages, levels = seen
    for name, stage in zip(("stem", "stage1", "c3", "c4", "c5"), stages, strict=True):
        case.compare(f"backbone.{name}", stage, *near(case))
    official.compare_levels(case, levels)
    for i, stride in enumerate(STRIDES):
        case.compare(f"cls.{i}", raw.detector.logits[i], *near(case))
        case.compare(f"reg.{i}", raw.detector.distances[i] * stride, *near(case))
        case.compare(f"param.{i}", raw.detector.extra[i], *near(case))
    case.compare("mask_feat", raw.branch.features, *near(case))
    places = case.manifest["instances"]
    xy = torch.tensor([[float(x * STRIDES[level]), float(y * STRIDES[level])] for level, y, x in places])
    stride = torch.tensor([float(STRIDES[level]) for level, _, _ in places])
    filters = torch.stack([raw.detector.extra[level][0, :, y, x] for level, y, x in places])
    widths = model.config.masks.head_widths
    masks = dynamic_masks(filters, xy, stride, raw.branch.features[0], STRIDES[0], widths, corners=True)
    case.compare("mask_logits", masks, *near(case))


def _images(case: Case) -> Batch:
    """The images of a case, padded to its size, and its targets where it has some."""
    given, samples = case.manifest["input"], []
    size = (given["padded_hw"][0], given["padded_hw"][1])
    for i, (height, width) in enumerate(given["image_sizes_hw"]):
        image = torch.zeros(3, *size, dtype=torch.uint8)
        own = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed + i)).permute(2, 0, 1)
        image[:, :height, :width] = own
        target = Target.of([], [])
        if "targets" in given:
            target = _target(case.scenes.make_scene(case.seed + 10 + i, height, width, 4 + i), size)
        samples.append((image, target, ImageMeta(i, "", (height, width), (height, width))))
    return collate(samples, replace(_preset(case).input, size=size))


def _target(scene: dict[str, np.ndarray], size: tuple[int, int]) -> Target:
    """A scene in the upper left corner of a canvas of ``size``."""
    masks = np.zeros((len(scene["masks"]), *size), bool)
    masks[:, : scene["masks"].shape[1], : scene["masks"].shape[2]] = scene["masks"]
    return Target.of(scene["boxes"], scene["classes"], masks)


# results --------------------------------------------------------------------------------------------------------------


def _detector(case: Case, scenes: list[dict[str, np.ndarray]], size: tuple[int, int]) -> FcosRaw:
    """Seeded predictions as leaves; distances are measured from the corners of the cells."""
    made = [
        case.scenes.fcos_raw(case.seed + i, scene, *size, strides=STRIDES, top="condinst", soi=(64, 128, 256))
        for i, scene in enumerate(scenes)
    ]
    shift = np.array([-0.5, -0.5, 0.5, 0.5], np.float32)[:, None, None]
    levels: dict[str, tuple[Tensor, ...]] = {}
    for key in ("logits", "reg", "top"):
        stacked = [np.stack(maps) for maps in zip(*(m[key] for m in made), strict=True)]
        if key == "reg":
            stacked = [np.maximum(level + shift, 0) for level in stacked]
        levels[key] = tuple(torch.from_numpy(level).requires_grad_() for level in stacked)
    total = float(levels["logits"][0].detach().abs().double().sum())
    assert abs(total - case.manifest["input"]["check"]["logits0"]["abs_sum"]) <= 1e-5 * total
    return FcosRaw(levels["logits"], levels["reg"], (), levels["top"])


def _postprocess(case: Case) -> None:
    model, given = _model(case), case.manifest["input"]
    meta = official.meta_of(case)
    size = meta.input_size
    call = re.search(r"make_scene\(seed, (\d+), (\d+), (\d+)\)", given["scene"])
    assert call is not None
    detector = _detector(case, [case.scenes.make_scene(case.seed, *(int(n) for n in call.groups()))], size)
    shape = (1, 8, size[0] // STRIDES[0], size[1] // STRIDES[0])
    raw = DynamicMaskRaw(
        detector, MaskBranchRaw(torch.from_numpy(case.scenes.maps_raw("mask_feats", shape, case.seed)), None)
    )
    with torch.no_grad():
        found = rtm_detect(raw.detector, model.config.detector)
        logits = mask_logits(raw, found, STRIDES, model.config.masks.head_widths, corners=True)
        selected = model.select(raw)
    kept = found.scores[0] > 0
    assert int(kept.sum()) == int(case.stored("count")[0]) == int(case.stored("unscaled.count")[0])
    locations = locate(raw.detector.logits, STRIDES, corners=True)
    where = found.locations[0, kept]
    stride = locations.stride[where, None]
    case.compare("detect.priors", torch.cat([locations.xy[where], stride, stride], 1), 0)
    case.compare("mask_logits", logits[0, kept], 1e-5)
    case.compare("unscaled.boxes", found.boxes[0, kept], 0, case.manifest["tolerance"]["boxes"])
    in_input = official.decoded(case, model, selected, ImageMeta(0, "", size, size))
    assert in_input.masks is not None
    off = np.abs(in_input.masks.areas() - case.stored("unscaled.mask_area"))
    assert (off <= 0.002 * case.outputs["unscaled.mask_area"]).all()

    # officially boxes may end outside of the image, and so objects in the padding are kept: they are compared as found
    extent = np.array([meta.affine[0, 0], meta.affine[1, 1]] * 2)
    boxes = found.boxes[0, kept].numpy() * extent
    case.compare("boxes", boxes, 0, case.manifest["tolerance"]["boxes"])
    case.compare("scores", found.scores[0, kept], 0, case.manifest["tolerance"]["scores"])
    assert np.array_equal(case.stored("labels"), found.labels[0, kept])
    visible = (boxes[:, :2] < meta.size[::-1]).all(1)
    ours = official.decoded(case, model, selected)
    assert np.allclose(ours.boxes, boxes[visible].clip(0, [meta.size[1], meta.size[0]] * 2), atol=1e-3)

    # officially height is resized by the factor of the width and the reverse (issue 11230); `resized_mask_hw` is that
    height, width = (n / side for n, side in zip(given["resized_mask_hw"], size, strict=True))
    swapped = replace(meta, affine=np.array([[width, 0, 0], [0, height, 0]]))
    everywhere = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand_as(selected.boxes)  # boxes have no part in masks
    masks = official.decoded(case, model, selected._replace(boxes=everywhere), swapped).masks
    assert masks is not None
    official.compare_masks(case, masks.dense(), 0.002)


# training -------------------------------------------------------------------------------------------------------------


def _loss(case: Case) -> None:
    model, given = _model(case), case.manifest["input"]
    size = (given["padded_hw"][0], given["padded_hw"][1])
    written = re.search(r"n = \[([\d, ]+)\]", given["targets"])
    assert written is not None
    scenes = [case.scenes.make_scene(case.seed + 10 + i, *size, n) for i, n in enumerate(case.numbers_in(written[1]))]
    shape = (len(scenes), 8, size[0] // 8, size[1] // 8)
    features = torch.from_numpy(case.scenes.maps_raw("mask_feats", shape, case.seed)).requires_grad_()
    raw = DynamicMaskRaw(_detector(case, scenes, size), MaskBranchRaw(features, None))
    images = torch.zeros(len(scenes), 3, *size)
    empty = case.numbers_in(" ".join(re.findall(r"image (\d+) has NO targets", given["targets"])))
    nothing = Target.of([], [], torch.zeros(0, *size))
    targets = [nothing if i in empty else _target(scene, size) for i, scene in enumerate(scenes)]
    metas = [ImageMeta(i, "", size, size) for i in range(len(scenes))]
    batch = Batch(images, full_sizes(images), targets, metas)

    config, detector = model.config.detector, raw.detector
    locations = locate(detector.logits, STRIDES, corners=True)
    centres = [mask_centres(target, size) for target in targets]
    total = 0.0
    for i, target in enumerate(targets):
        costs = costs_of(flatten(detector.logits)[i], boxes_of(detector, locations)[i], target, centres[i], locations)
        chosen = assign(costs, len(locations.xy), config.overlaps)
        if len(target):
            case.compare(f"centre.{i}", centres[i], 1e-6)
            assert np.array_equal(case.stored(f"valid.{i}"), costs.locations)
            assert np.array_equal(case.stored(f"dynamic_k.{i}"), shares_of(costs.overlaps, config.overlaps))
            case.compare(f"ious.{i}", costs.overlaps, 1e-5)
            # they span twenty orders of magnitude
            assert np.allclose(case.stored(f"cost.{i}"), costs.costs, rtol=1e-4)
        _compare_assigned(case, i, chosen)
        where = torch.nonzero(chosen.objects >= 0)[:, 0]
        assert np.array_equal(case.stored(f"pos_inds.{i}"), where)
        case.compare(f"pos_ious.{i}", chosen.overlaps[where], 1e-5)
        total += float(chosen.overlaps.sum())
    case.compare("avg_factor", np.array(total), 1e-5)

    classes, boxes, positives = location_losses(detector, batch, config, centres)
    level = locations.level[positives.location]
    tolerance = case.manifest["tolerance"]["losses_rtol"]
    of_level = [classes[:, locations.level == i].sum() / total for i in range(3)]
    case.compare("loss_cls.levels", torch.stack(of_level), tolerance)
    of_level = [config.box_weight * boxes[level == i].sum() / total for i in range(3)]
    case.compare("loss_bbox.levels", torch.stack(of_level), tolerance)
    dice = []
    for i in range(len(positives.image)):
        b, at = int(positives.image[i]), positives.location[i : i + 1]
        filters = pick(detector.extra, positives.image[i : i + 1], at)
        place = locations.xy[at], locations.stride[at]
        mask = dynamic_masks(filters, *place, features[b], 8, model.config.masks.head_widths, corners=True)
        mask = nn.functional.interpolate(mask[None], scale_factor=2.0, mode="bilinear")[0]
        truth = mask_targets(targets[b], positives.object[i : i + 1], (size[0] // 4, size[1] // 4))
        dice.append(dice_loss(mask.sigmoid(), truth, 1e-5))
    case.compare("dice_per_instance", torch.cat(dice), tolerance)

    losses = model.loss_terms(raw, batch)
    for name, ours in (("loss_cls", "classification"), ("loss_bbox", "box"), ("loss_mask", "mask")):
        case.compare(name, losses[ours], tolerance)
    case.compare("loss_total", torch.stack(list(losses.values())).sum(), tolerance)
    leaves: dict[str, tuple[str, tuple[Tensor, ...], tuple[int, ...]]] = {
        "loss_cls.logits": ("classification", detector.logits, (1, 1, 1)),
        "loss_bbox.reg": ("box", detector.distances, STRIDES),  # officially in pixels
        "loss_mask.top": ("mask", detector.extra, (1, 1, 1)),
        "loss_mask.mask_feats": ("mask", (features,), (1,)),
    }
    for name, (term, tensors, units) in leaves.items():
        gradients = torch.autograd.grad(losses[term], tensors, retain_graph=True)
        norms = np.array([float(g.norm()) / unit for g, unit in zip(gradients, units, strict=True)])
        case.compare(f"gradnorm.{name}", norms, case.manifest["tolerance"]["gradnorm_rtol"])


def _compare_assigned(case: Case, image: int, chosen: SoftAssignment) -> None:
    assert np.array_equal(case.stored(f"assigned.{image}"), chosen.objects + 1)


def _train_step(case: Case) -> None:
    model, batch = _model(case, fill=True).train(), _images(case)
    raw = model(batch.images, batch.sizes, batch.targets)
    size = (batch.images.shape[2], batch.images.shape[3])
    locations = locate(raw.detector.logits, STRIDES, corners=True)
    for i, target in enumerate(batch.targets):
        boxes = boxes_of(raw.detector, locations)[i]
        costs = costs_of(flatten(raw.detector.logits)[i], boxes, target, mask_centres(target, size), locations)
        _compare_assigned(case, i, assign(costs, len(locations.xy), model.config.detector.overlaps))
    losses = model.loss_terms(raw, batch)
    tolerance = case.manifest["tolerance"]
    for name, ours in (("loss_cls", "classification"), ("loss_bbox", "box"), ("loss_mask", "mask")):
        case.compare(name, losses[ours], tolerance["losses_rtol"])
    total = torch.stack(list(losses.values())).sum()
    case.compare("loss_total", total, tolerance["losses_rtol"])
    total.backward()
    parameters = [dict(model.named_parameters())[_ours(name)] for name in case.manifest["gradnorm_names"]]
    assert set(parameters) == set(model.parameters())
    norms = np.array([float(p.grad.norm()) for p in parameters if p.grad is not None])
    theirs = case.stored("gradnorm")
    off = np.abs(norms - theirs) / (theirs + 1e-4 * theirs.max())
    assert off.max() <= tolerance["gradnorm_rtol"], case.manifest["gradnorm_names"][off.argmax()]

    state, names = model.state_dict(), case.manifest["bn_names"]
    for kind, key in (("mean", "running_mean"), ("var", "running_var")):
        norms = np.array([float(state[_ours(f"{name}.{key}")].norm()) for name in names])
        case.compare(f"bn_{kind}_norm", norms, tolerance["losses_rtol"])
    # ours moves the statistics of the shared tower once, by as much as two official moves
    moves = [2 if "cls_convs" in name else 1 for name in names]
    counted = [int(state[_ours(f"{name}.num_batches_tracked")]) for name in names]
    assert np.array_equal(case.stored("bn_tracked"), np.array(counted) * moves)


def _ours(name: str) -> str:
    """Our name of an official tensor."""
    return next(iter(rename({name: torch.zeros(1, 1)})))


def _optimizer(case: Case) -> None:
    model, preset, given = _model(case), _preset(case), case.config
    train, near_by = preset.train, case.manifest["tolerance"]["rtol"]
    assert train.epochs == given["train_cfg"]["max_epochs"]
    assert train.batch == 8 * given["batch_size_per_gpu"]
    groups = {p: group for group in param_groups(model, train) for p in group["params"]}
    parameters = [dict(model.named_parameters())[_ours(name)] for name in case.manifest["names"]]
    assert set(parameters) == set(groups)
    case.compare("lr", np.array([train.lr * groups[p]["lr_factor"] for p in parameters]), near_by)
    case.compare("weight_decay", np.array([groups[p]["weight_decay"] for p in parameters]), near_by)
    # the case's run is so short that its warm-up would be more than the tenth that ours may be: it is taken from a run
    # of the real length, in which the rate is as flat at that time
    total = int(given["train_cfg"]["max_epochs"]) * case.manifest["input"]["epoch_length"]
    factors = [
        learning_rate(i, total if i >= 1000 else 100 * total, train) / train.lr for i in case.manifest["iterations"]
    ]
    case.compare("factor", np.array(factors), near_by)

    value, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    value.double()
    average.double()
    averages = []
    for step in range(max(case.manifest["ema_updates"])):
        nn.init.constant_(value.weight, (step + 1) / 1000)
        update_average(average, value, train.ema, step, train.ema_warmup)
        if step + 1 in case.manifest["ema_updates"]:
            averages.append(average.weight.item())
    case.compare("ema", np.array(averages), case.manifest["tolerance"]["ema_rtol"])


# input ----------------------------------------------------------------------------------------------------------------


def _preprocess(case: Case) -> None:
    given = zoo.preset("rtmdet-ins-tiny").input
    for k, stage in enumerate(case.manifest["input"]["cases"]):
        height, width = stage["image_hw"]
        image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed + k)).permute(2, 0, 1)
        own = replace(given, size=(stage["scale"][0], stage["scale"][1]))
        sample = (image, Target.of([], []), ImageMeta(0, "", (height, width), (height, width)))
        resized, target, meta = apply(eval_ops(own), sample, np.random.default_rng(0))
        assert list(meta.input_size) == stage["content_hw"]
        batch = collate([(resized, target, meta)], own)
        mean, std = (torch.tensor(v)[:, None, None] for v in (own.mean, own.std))
        case.compare(f"resized.{k}", (batch.images[0] * std + mean).flip(0), 0, 1e-3)
        case.compare(f"input.{k}", batch.images.flip(1), 1e-6, 1e-5)
    table = case.manifest["input"]["size_table"]
    side = table["scale"]
    sizes = [fitted_size(hw, (side[0], side[1]), given.resize) for hw in table["sizes_hw"]]
    case.compare("size_table", np.array(sizes), 0)
