"""PSENet against whai362/PSENet. Every stored tensor of a case is compared; nothing is left out."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from maskkit import zoo
from maskkit.config import InputConfig
from maskkit.data.loader import normalise
from maskkit.decode.clustering import expand, rate
from maskkit.geometry.rectangles import least_rectangle
from maskkit.models.psenet import PsenetConfig, hard_pixels, kernel_losses, resize
from tests.parity.goldens import Case, watched

_PRESET = "psenet-resnet50"


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    {"FORWARD+LOSS": _forward, "POSTPROCESS": _expansion, "LOSS": _loss}[case.manifest["kind"]](case)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"


def _forward(case: Case) -> None:
    preset = zoo.preset(_PRESET)
    assert case.config["config"].startswith("psenet_r50")
    model = case.filled(_PRESET, kernels=case.config["kernel_num"])
    images = _image(case, preset.input)
    with torch.no_grad(), watched(model.backbone, model.fpn) as seen:
        raw = model(images)
        logits = resize(raw.kernels, (images.shape[2], images.shape[3]))
    features, levels = seen
    ours = {
        "c2": features[4],
        "c5": features[32],
        "fpn_p2": levels[0],
        "fpn_p5_up": levels[3],
        "logits_stride4": raw.kernels,
        "logits": logits,
    }
    relative = case.manifest["tolerance"]["rtol"]
    for name, tensor in ours.items():
        case.compare(name, tensor, 0, relative * case.manifest["outputs"][name]["std"])
    _compare_losses(case, logits, *_truth(case, 1, images.shape[2:]), relative)


def _loss(case: Case) -> None:
    count, size = case.config["n"], case.config["size"]
    channels = case.manifest["outputs"]["grad"]["shape"][1]
    out = 2 * torch.from_numpy(case.recipe.seeded_array("out", (count, channels, *size), case.seed))
    out.requires_grad_()
    relative = case.manifest["tolerance"]["rtol"]
    kernels, known = _truth(case, count, size)
    complete, shrunken = _compare_losses(case, out, kernels, known, relative)
    chosen = [hard_pixels(*p, 3) for p in zip(out[:, 0].detach(), kernels[:, 0], known, strict=True)]
    case.compare("ohem_mask", torch.stack(chosen).float(), 0)
    (complete + shrunken).mean().backward()
    assert out.grad is not None
    case.compare("grad", out.grad, relative, 1e-9)


def _compare_losses(case: Case, logits: Tensor, kernels: Tensor, known: Tensor, relative: float) -> tuple[Any, Any]:
    """Both terms with their weights, and the IoU that the official code logs beside them."""
    config = zoo.preset(_PRESET).model
    assert isinstance(config, PsenetConfig)
    complete, shrunken = kernel_losses(logits, kernels, known, config.negatives_per_positive)
    complete, shrunken = config.complete_weight * complete, (1 - config.complete_weight) * shrunken
    case.compare("loss_text", complete, relative)
    case.compare("loss_kernels", shrunken, relative)
    found = logits.detach() > 0
    case.compare("iou_text", _mean_iou(found[:, 0], kernels[:, 0], known), relative)
    case.compare("iou_kernel", _mean_iou(found[:, -1], kernels[:, -1], known & kernels[:, 0]), relative)
    return complete, shrunken


def _mean_iou(found: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Mean of the IoU of the background and of the objects."""
    pairs = ((found, truth), (~found, ~truth))
    both = [((a & b & where).sum((1, 2)) / ((a | b) & where).sum((1, 2)).clamp(min=1)) for a, b in pairs]
    return (both[0] + both[1]) / 2


def _expansion(case: Case) -> None:
    logits = case.stored("logits_in")
    assert len(logits) == case.config["kernel_num"]
    for area in case.config["min_area"]:
        assert np.array_equal(expand(logits > 0, area), case.stored(f"label_min_area_{area}")), area
    for least in case.config["min_score"]:
        numbers = expand(logits > 0, 16)
        groups = rate(numbers, expit(logits[0]), np.zeros_like(numbers), 16, least)
        case.compare(f"scores_{least}", groups.scores, 0, 1e-5)
        official = case.stored(f"bboxes_{least}")
        for number, corners in zip(groups.kept, official, strict=True):
            y, x = np.nonzero(numbers == number)
            # the official corners are whole pixels of an image twice as large
            ours = np.trunc(2 * least_rectangle(np.stack([x, y], 1)))
            assert _apart(ours, corners.reshape(4, 2)) <= 1, number


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of two rectangles whose corners may begin anywhere and turn either way."""
    return min(float(np.abs(np.roll(turned, i, 0) - b).max()) for i in range(4) for turned in (a, a[::-1]))


def _image(case: Case, given: InputConfig) -> Tensor:
    """The image that the manifest describes as ``seeded_image(h,w,seed)``, normalised."""
    height, width = case.numbers_in(case.manifest["inputs"].split("seeded_image(")[1])[:2]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed)).permute(2, 0, 1)
    return normalise(image, given)[None]


def _truth(case: Case, count: int, size: Any) -> tuple[Tensor, Tensor]:
    """Boxes that shrink by a tenth from map to map, and which pixels count, as the manifest describes them."""
    rng = case.recipe.rng_for("text", case.seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    kernels = np.zeros((count, 7, height, width), bool)
    for maps in kernels:
        for _ in range(4):
            cy, cx = rng.uniform(0.15, 0.85) * height, rng.uniform(0.15, 0.85) * width
            ry, rx = rng.uniform(8, 18), rng.uniform(14, 34)
            for k, level in enumerate(maps):
                level |= (np.abs(y - cy) < ry * (1 - 0.1 * k)) & (np.abs(x - cx) < rx * (1 - 0.1 * k))
    known = np.ones((count, height, width), bool)
    known[:, :10, :25] = False
    return torch.from_numpy(kernels), torch.from_numpy(known)
