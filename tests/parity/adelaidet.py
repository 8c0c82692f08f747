"""What the goldens of AdelaiDet's methods have in common: inputs as their manifests write them, and FCOS itself.

Images are BGR there and RGB here; `Case.filled` turns the first convolution round, this file the gradients.
"""

import importlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskkit import zoo
from maskkit.config import InputConfig, change
from maskkit.data.loader import collate
from maskkit.nn.fcos import FcosRaw
from maskkit.nn.fcos_targets import Positives
from maskkit.prediction import Categories, ImageMeta, Instances, Prediction
from maskkit.targets import Batch, Target, full_sizes
from tests.parity.goldens import Case

_KNOBS = {
    "MODEL.FCOS.NUM_CLASSES": "num_classes",
    "MODEL.FCOS.BOX_QUALITY": "detector.quality",
    "MODEL.FCOS.THRESH_WITH_CTR": "detector.score_with_quality",
    "MODEL.FCOS.INFERENCE_TH_TEST": "detector.min_score",
    "MODEL.FCOS.NMS_TH": "detector.nms_threshold",
    "MODEL.FCOS.PRE_NMS_TOPK_TEST": "detector.candidates",
    "MODEL.FCOS.POST_NMS_TOPK_TEST": "detector.detections",
    "MODEL.CONDINST.MASK_BRANCH.OUT_CHANNELS": "masks.mask_channels",
    "MODEL.CONDINST.MAX_PROPOSALS": "masks_to_train",
    "MODEL.CONDINST.TOPK_PROPOSALS_PER_IM": "masks_to_train",
    "MODEL.BOXINST.PAIRWISE.COLOR_THRESH": "box_only.threshold",
    "MODEL.BOXINST.PAIRWISE.DILATION": "box_only.dilation",
    "MODEL.BOXINST.BOTTOM_PIXELS_REMOVED": "box_only.skip_bottom",
}
_THRESHOLDS = {
    "score": "detector.min_score",
    "nms": "detector.nms_threshold",
    "pre_nms_topk": "detector.candidates",
    "post_nms_topk": "detector.detections",
    "thresh_with_ctr": "detector.score_with_quality",
}


def preset_of(case: Case) -> str:
    """The preset of the official file of a case, ``configs/CondInst/MS_R_50_3x_sem.yaml`` for one."""
    stem = case.config["file"].rpartition("/")[2].removesuffix(".yaml").removeprefix("MS_")
    _, depth, schedule, *rest = stem.split("_")
    kind = {"": "", "sem": "-semantic", "iou": "-iou"}["_".join(rest)]
    return f"{case.method}{kind}-resnet{depth}-{schedule}"


def knobs_of(case: Case) -> dict[str, Any]:
    """What the case sets otherwise than its official file."""
    overrides = case.config.get("overrides", [])
    flat: dict[str, Any] = {}
    for name, value in zip(overrides[::2], overrides[1::2], strict=True):
        if name == "MODEL.BOXINST.PAIRWISE.WARMUP_ITERS":
            flat["box_only.warmup"] = 1.0  # `progress` then is the share of these iterations
        else:
            flat[_KNOBS[name]] = value
    for name, value in case.config.get("thresholds", {}).items():
        if name in _THRESHOLDS:
            flat[_THRESHOLDS[name]] = value
    knobs: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, field = name.rpartition(".")
        (knobs.setdefault(part, {}) if part else knobs)[field] = value
    return knobs


def model_of(case: Case, fill: bool = False) -> Any:
    """The model of the case, with the recipe's weights or, for losses and decoding, without any."""
    name, knobs = preset_of(case), knobs_of(case)
    if fill:
        return case.filled(name, {**case.weights(), **case.constants}, **knobs)
    with torch.device("meta"):
        return zoo.model_class(name)(change(zoo.preset(name).model, **knobs))  # type: ignore[call-arg]


# inputs --------------------------------------------------------------------------------------------------------------


def scenes_of(case: Case, sizes: Sequence[tuple[int, int]] | None = None) -> list[dict[str, np.ndarray]]:
    """The scenes that a manifest writes down; ``sizes`` are its ``h_i, w_i``."""
    text = case.manifest["inputs"].get("targets") or case.manifest["inputs"]["scene"]
    call = re.search(r"scenes\.make_scene\(([^)]*)\)", text)
    assert call is not None
    numbers = re.search(r"\), i = ([\d, ]+\d)", text)
    count = len(sizes) if sizes is not None else len(numbers[1].split(",")) if numbers is not None else 1
    made = []
    for i in range(count):
        names: dict[str, Any] = {"scenes": case.scenes, "seed": case.seed, "i": i}
        if sizes is not None:
            names |= {"h_i": sizes[i][0], "w_i": sizes[i][1]}
        made.append(eval(call[0], names))
    return made


def raw_of(case: Case, scenes: list[dict[str, np.ndarray]]) -> FcosRaw:
    """The seeded predictions of a case as leaves."""
    call = re.search(r"scenes\.fcos_raw\([^)]*\)", case.manifest["inputs"]["predictions"])
    assert call is not None
    names = {"scenes": case.scenes, "seed": case.seed}
    made = [eval(call[0], {**names, "i": i, "sc_i": scene, "sc": scene}) for i, scene in enumerate(scenes)]
    levels = {
        key: tuple(
            torch.from_numpy(np.stack(maps)).requires_grad_() for maps in zip(*(m[key] for m in made), strict=True)
        )
        for key in ("logits", "reg", "ctr", "top")
    }
    check = case.manifest["inputs"].get("check", {})
    for name, described in check.items():
        total = float(levels[name.rstrip("0")][0].detach().abs().sum())
        assert abs(total - described["abs_sum"]) <= 1e-5 * described["abs_sum"], name
    return FcosRaw(levels["logits"], levels["reg"], levels["ctr"], levels["top"])


def maps_of(case: Case, name: str) -> Tensor:
    """The seeded maps that a manifest calls ``name``, as a leaf."""
    text = case.manifest["inputs"][name].partition(", stride")[0]
    maps = eval(
        text, {"scenes": case.scenes, "recipe": case.recipe, "quantise": case.scenes.quantise, "seed": case.seed}
    )
    return torch.from_numpy(maps).requires_grad_()


def target_of(scene: dict[str, np.ndarray], size: tuple[int, int], with_masks: bool = True) -> Target:
    """A scene in the upper left corner of a canvas of ``size``."""
    masks = np.zeros((len(scene["masks"]), *size), bool)
    masks[:, : scene["masks"].shape[1], : scene["masks"].shape[2]] = scene["masks"]
    return Target.of(scene["boxes"], scene["classes"], masks if with_masks else None)


def given_batch(case: Case, scenes: list[dict[str, np.ndarray]], with_masks: bool = True) -> Batch:
    """The batch of a case whose predictions are given: its targets, and the images where it has some."""
    size = tuple(case.manifest["inputs"]["padded_hw"])
    images, heights = torch.zeros(len(scenes), 3, *size), [size[0]] * len(scenes)
    if text := case.manifest["inputs"].get("images"):
        heights = [int(n) for n in re.findall(r"image \d+ (\d+)", text)]
        pixels = [case.recipe.seeded_image(*size, case.seed + i) for i in range(len(scenes))]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    metas = [ImageMeta(i, "", (h, size[1] * h // size[0]), size) for i, h in enumerate(heights)]
    targets = [target_of(scene, size, with_masks) for scene in scenes]
    return Batch(images, full_sizes(images), targets, metas)


def image_batch(case: Case) -> Batch:
    """The images of a case, and its targets where it has some, through the package's own normalisation."""
    given = case.manifest["inputs"]
    sizes = [tuple(size) for size in given["image_sizes_hw"]]
    scenes = scenes_of(case, sizes) if "targets" in given else [None] * len(sizes)
    times = int(m[1]) if (m := re.search(r"are (\d+) times", given.get("targets", ""))) else 1
    samples = []
    for i, (size, scene) in enumerate(zip(sizes, scenes, strict=True)):
        image = torch.from_numpy(case.recipe.seeded_image(*size, case.seed + i)).permute(2, 0, 1)
        target = Target.of([], []) if scene is None else target_of(scene, size)
        samples.append((image, target, ImageMeta(i, "", (size[0] * times, size[1] * times), size)))
    return collate(samples, InputConfig(resize="shorter", mean=tuple(given["mean"][::-1]), std=tuple(given["std"])))


# comparisons ---------------------------------------------------------------------------------------------------------


def compare_detector(case: Case, levels: Sequence[Tensor], raw: FcosRaw) -> None:
    """Pyramid and head."""
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    for i, level in enumerate(levels):
        case.compare(f"fpn.p{i + 3}", level, *near)
    for kind, maps in (
        ("logits", raw.logits),
        ("reg", raw.distances),
        ("ctrness", raw.quality),
        ("top_feats", raw.extra),
    ):
        for i, level in enumerate(maps):
            if f"fcos.{kind}.{i}" in case.outputs:
                case.compare(f"fcos.{kind}.{i}", level, *near)


def official_order(positives: Positives, raw: FcosRaw) -> tuple[Tensor, Tensor]:
    """Flat indices of the positives, levels first and images second, and the order that sorts them."""
    cells = torch.tensor([level.shape[2] * level.shape[3] for level in raw.logits])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), cells.cumsum(0)])
    level = torch.bucketize(positives.location, starts[1:], right=True)
    batch = len(raw.logits[0])
    flat = starts[level] * batch + positives.image * cells[level] + positives.location - starts[level]
    return flat, flat.argsort()


def compare_positives(case: Case, positives: Positives, raw: FcosRaw, batch: Batch) -> Tensor:
    """The locations that have an object, and what they should predict; gives their official order."""
    flat, order = official_order(positives, raw)
    assert np.array_equal(case.stored("pos_inds"), flat[order])
    assert np.array_equal(case.stored("pos_labels"), positives.label[order])
    case.compare("pos_reg_targets", positives.distances[order], 0, 1e-5)
    if "pos_gt_inds" in case.outputs:
        assert np.array_equal(case.stored("pos_gt_inds"), (positives.object + firsts(batch)[positives.image])[order])
    if "pos_ctr_targets" in case.outputs:
        case.compare("pos_ctr_targets", positives.centerness[order], 0, 1e-5)
    return order


def firsts(batch: Batch) -> Tensor:
    """The number, over the whole batch, of the first object of each image."""
    counts = torch.tensor([0, *(len(t) for t in batch.targets)])
    return counts.cumsum(0)[:-1]


def compare_term(case: Case, name: str, value: Tensor, leaves: dict[str, Sequence[Tensor]]) -> None:
    """A loss term and the norms of its gradients by groups of ``leaves``."""
    near = case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]
    case.compare(name, value, *near)
    for group, tensors in leaves.items():
        if (key := f"gradnorm.{name}.{group}") in case.outputs:
            gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
            norms = [0.0 if g is None else float(g.norm()) for g in gradients]
            case.compare(key, np.array(norms), 10 * near[0], near[1])


def compare_fcos_terms(case: Case, losses: dict[str, Tensor], raw: FcosRaw) -> None:
    """The three terms of the detector."""
    third = "loss_fcos_iou" if "loss_fcos_iou" in case.outputs else "loss_fcos_ctr"
    for name, ours in (("loss_fcos_cls", "classification"), ("loss_fcos_loc", "box"), (third, "quality")):
        compare_term(case, name, losses[ours], {"logits": raw.logits, "reg": raw.distances, "ctr": raw.quality})


def compare_final(case: Case, predictions: list[Prediction]) -> Instances:
    """Boxes, scores and classes in original pixels, in the official order."""
    found = predictions[0].instances
    assert found is not None
    case.compare("scores", found.scores, 0, case.manifest["tolerance"]["scores"])
    assert np.array_equal(case.stored("classes"), found.labels)
    case.compare("boxes", found.boxes, 0, case.manifest["tolerance"]["boxes"])
    return found


def meta_of(case: Case) -> ImageMeta:
    """How the image of a decoding case was brought to its padded input."""
    given = case.manifest["inputs"]
    (height, width), output = given["image_hw"], given["output_hw"]
    scale = np.array([[output[1] / width, 0, 0], [0, output[0] / height, 0]])
    return ImageMeta(0, "", tuple(output), tuple(given["padded_hw"]), scale)


def train_step(case: Case, terms: dict[str, str], progress: float = 1.0) -> None:
    """One forward and backward of the whole model: every term, and the norm of every parameter's gradient."""
    model = model_of(case, fill=True).train()
    batch = replace(image_batch(case), progress=progress)
    losses = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
    near = case.manifest["tolerance"]["losses_rtol"]
    for official, ours in terms.items():
        case.compare(official, losses[ours], near)
    total = torch.stack(list(losses.values())).sum()
    case.compare("loss_total", total, near)
    total.backward()
    norms = np.array([0.0 if p.grad is None else float(p.grad.norm()) for p in trained(case, model)])
    official = case.stored("gradnorm")
    off = np.abs(norms - official) / (official + 1e-4 * official.max())
    assert off.max() <= case.manifest["tolerance"]["gradnorm_rtol"], case.manifest["gradnorm_names"][off.argmax()]


def trained(case: Case, model: nn.Module, names: str = "gradnorm_names") -> list[nn.Parameter]:
    """Our parameters behind the official names of those that learn; no other of ours learns."""
    rename = importlib.import_module(f"maskkit.zoo.{case.method}").rename
    parameters = dict(model.named_parameters())
    ours = [next(iter(rename({name: torch.zeros(1, 1)}))) for name in case.manifest[names]]
    assert set(ours) == {name for name, p in parameters.items() if p.requires_grad}
    return [parameters[name] for name in ours]


CATEGORIES = Categories.of(map(str, range(80)))
