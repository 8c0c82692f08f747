"""Sizes, resizing and normalisation of mmdetection, by the package's own inputs."""

import numpy as np
import pytest
import torch

from maskkit.config import InputConfig
from maskkit.data.loader import collate
from maskkit.data.transforms import apply, eval_ops
from maskkit.geometry.resample import fitted_size
from maskkit.prediction import ImageMeta
from maskkit.targets import Target
from tests.parity.goldens import Case


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case.manifest["input"]
    height, width = given["image_hw"]
    image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed)).permute(2, 0, 1)
    for k, stage in enumerate(given["cases"]):
        rgb = stage["data_preprocessor"]["bgr_to_rgb"]
        order = slice(None) if rgb else slice(None, None, -1)
        mean, std = (stage["data_preprocessor"][name][order] for name in ("mean", "std"))
        size = (stage["scale"][1], stage["scale"][0])
        config = InputConfig(
            tuple(sorted(size)) if stage["keep_ratio"] else size,
            "shorter" if stage["keep_ratio"] else "stretch",
            interpolation="cv2_float" if stage["to_float32"] else "cv2",
            mean=tuple(mean),
            std=tuple(std),
        )
        sample = (image, Target.of([], []), ImageMeta(0, "", (height, width), (height, width)))
        resized, _, meta = apply(eval_ops(config), sample, np.random.default_rng(0))
        assert list(resized.shape[1:]) == stage["img_shape"]
        factors = 1 / np.diag(meta.affine[:, :2])
        assert np.allclose(factors, stage["scale_factor_wh"], rtol=1e-6)
        case.compare(f"resized.{k}", resized.flip(0), 0, 1e-3 if stage["to_float32"] else 0)
        batch = collate([(resized, Target.of([], []), meta)], config)
        case.compare(f"input.{k}", batch.images if rgb else batch.images.flip(1), 1e-6, 1e-5)
    table = given["size_table"]
    sizes = [
        [fitted_size(hw, tuple(sorted(scale)), "shorter") for hw in table["sizes_hw"]] for scale in table["scales"]
    ]
    case.compare("size_table", np.array(sizes), 0, 0)
