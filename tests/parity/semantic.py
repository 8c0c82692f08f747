"""What the parity checks of the semantic methods share: inputs, targets and tolerances as their manifests say them."""

import re

import numpy as np
import torch
from torch import Tensor

from maskkit.config import InputConfig
from maskkit.data.label_map import IGNORE
from maskkit.data.loader import normalise
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes
from tests.parity.goldens import Case


def image(case: Case) -> Tensor:
    """The image named in ``inputs``, RGB bytes (3, H, W)."""
    found = re.search(r"seeded_image\((\d+),\s*(\d+)", case.manifest["inputs"])
    assert found is not None
    return torch.from_numpy(case.recipe.seeded_image(int(found[1]), int(found[2]), case.seed)).permute(2, 0, 1)


def batch(case: Case, input: InputConfig, classes: int) -> Batch:
    """The image, normalised, with the target of the case."""
    images = normalise(image(case), input)[None]
    height, width = images.shape[2:]
    rng = case.recipe.rng_for("target", case.seed)
    labels = rng.integers(0, classes, (1, -(-height // 8), -(-width // 8))).repeat(8, 1).repeat(8, 2)
    labels = labels[:, :height, :width]
    labels[rng.random((1, height, width)) < 0.1] = IGNORE
    target = Target.of([], [], semantic=torch.from_numpy(labels[0].astype(np.uint8)))
    meta = ImageMeta(1, "", (height, width), (height, width))
    return Batch(images, full_sizes(images), [target], [meta], input.mean, input.std)


def check(case: Case, name: str, ours: Tensor) -> None:
    """Compare at the manifest's tolerance: a share of the largest value, and of the standard deviation."""
    tolerance, described = case.manifest["tolerance"], case.manifest["outputs"][name]
    share = re.match(r"([\d.e+-]+)\*std", str(tolerance["atol"]))
    absolute = float(share[1]) * described["std"] if share else float(tolerance["atol"])
    official = case.outputs[name].reshape(-1).astype(np.float64)
    assert ours.numel() == np.prod(described["shape"]), (name, ours.shape, described["shape"])
    values = case.part(name, ours)
    worst = np.abs(values - official) - tolerance["rtol"] * np.abs(official) - absolute
    case.stored(name)
    assert worst.max() <= 0, f"{name}: off by {np.abs(values - official).max():.3g} of {np.abs(official).max():.3g}"


def every_output_seen(case: Case) -> None:
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"
