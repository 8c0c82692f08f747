"""What the cases of mmdetection have in common: weights by its names, images, pyramids, and final results.

`model_of` makes a preset's model with whatever the case says otherwise, and fills it through the card's key map.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskkit import zoo
from maskkit.config import change
from maskkit.data.loader import collate
from maskkit.decode import decode
from maskkit.models.base import to_arrays
from maskkit.prediction import Categories, ImageMeta, Instances
from maskkit.targets import Batch, Target
from tests.parity.goldens import Case, watched

CATEGORIES = Categories.of(map(str, range(80)))


def model_of(case: Case, preset: str, *, fill: bool = True, **knobs: Any) -> Any:
    """The preset's model with ``knobs``, in evaluation, with the case's weights or, for decoding, without any."""
    if fill:
        return case.filled(preset, **knobs)
    with torch.device("meta"):
        return zoo.model_class(preset)(change(zoo.preset(preset).model, **knobs)).eval()  # type: ignore[call-arg]


def image_batch(case: Case, preset: str) -> Batch:
    """The images of a case at their own sizes, normalised as the preset says, which is what the case says too.

    Compares ``input``, whose channels may be in the order BGR.
    """
    given, preprocessor = zoo.preset(preset).input, case.manifest["data_preprocessor"]
    order = slice(None) if preprocessor["bgr_to_rgb"] else slice(None, None, -1)
    assert list(given.mean[order]) == preprocessor["mean"]
    assert list(given.std[order]) == preprocessor["std"]
    samples = []
    for i, (height, width) in enumerate(case.manifest["input"]["image_sizes_hw"]):
        image = torch.from_numpy(case.recipe.seeded_image(height, width, case.seed + i)).permute(2, 0, 1)
        samples.append((image, Target.of([], []), ImageMeta(i, "", (height, width), (height, width))))
    batch = collate(samples, given)
    assert list(batch.images.shape[2:]) == case.manifest["input"]["padded_hw"]
    case.compare("input", batch.images if preprocessor["bgr_to_rgb"] else batch.images.flip(1), *near(case))
    return batch


def near(case: Case) -> tuple[float, float]:
    """The relative and the absolute tolerance of a case."""
    return case.manifest["tolerance"]["rtol"], case.manifest["tolerance"]["atol"]


def run_on(case: Case, model: Any, batch: Batch) -> Any:
    """What the model gives for the images. Compares the stages of its ResNet and the levels of its pyramid."""
    body = model.backbone.body
    with torch.no_grad(), watched(body.layer1, body.layer2, body.layer3, body.layer4, model.fpn) as seen:
        raw = model(batch.images, batch.sizes)
    *stages, levels = seen
    for i, stage in enumerate(stages):
        case.compare(f"backbone.c{i + 2}", stage, *near(case))
    compare_levels(case, levels)
    return raw


def compare_levels(case: Case, levels: Sequence[Tensor]) -> None:
    """The levels of a pyramid, of which the case names the finest."""
    first = min(int(name.removeprefix("neck.p")) for name in case.outputs if name.startswith("neck.p"))
    for i, level in enumerate(levels):
        case.compare(f"neck.p{i + first}", level, *near(case))


# predictions ----------------------------------------------------------------------------------------------------------


def meta_of(case: Case) -> ImageMeta:
    """How the image of a decoding case was brought to its padded input."""
    given = case.manifest["input"]["meta"]
    x, y = given["scale_factor"]
    original = (given["ori_shape"][0], given["ori_shape"][1])
    padded = (given["padded_hw"][0], given["padded_hw"][1])
    return ImageMeta(0, "", original, padded, np.array([[1 / x, 0, 0], [0, 1 / y, 0]]))


def decoded(case: Case, model: Any, selected: Any, meta: ImageMeta | None = None) -> Instances:
    """What the model's decoder makes of the selected objects of one image."""
    found = decode(model.decoder, to_arrays(selected), [meta or meta_of(case)], CATEGORIES)[0].instances
    assert found is not None
    return found


def compare_found(case: Case, found: Instances) -> None:
    """The number of objects, their scores, classes and, where the case has them, boxes."""
    assert len(found) == int(case.stored("count")[0])
    case.compare("scores", found.scores, 0, case.manifest["tolerance"]["scores"])
    assert np.array_equal(case.stored("labels"), found.labels)
    if "boxes" in case.outputs:
        case.compare("boxes", found.boxes, 0, case.manifest["tolerance"]["boxes"])


def compare_masks(case: Case, masks: np.ndarray, share: float, of_image: float = 0.0) -> None:
    """Binary masks: ``share`` of a mask, or ``of_image`` of the whole image, may differ, and one pixel always."""
    areas = case.stored("masks_area")
    allowed = np.maximum(np.maximum(share * areas, of_image * masks[0].size), 1)
    assert (np.abs(masks.sum((1, 2)) - areas) <= allowed).all()
    assert (np.abs(masks.sum(2) - case.stored("masks_rows")).sum(1) <= allowed).all()
    assert (np.abs(masks.sum(1) - case.stored("masks_cols")).sum(1) <= allowed).all()
    sample = case.sample("masks_sample", masks)
    assert ((sample != case.stored("masks_sample").astype(bool)).sum((1, 2)) <= allowed).all()
