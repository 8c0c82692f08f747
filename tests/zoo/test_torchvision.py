"""torchvision's models as live oracles: seeded weights, converted by the key maps, give the same predictions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import detection
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import change
from maskkit.data.shapes import CATEGORIES, draw
from maskkit.models.base import Model
from maskkit.prediction import ImageMeta, Instances
from maskkit.targets import Batch, full_sizes

CLASSES = len(CATEGORIES)
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@torch.no_grad()
def seeded(build: Callable[..., Any], **options: Any) -> Any:
    """A model of torchvision with random weights, whose batch norms are no identities."""
    torch.manual_seed(0)
    official = build(weights=None, weights_backbone=None, **options)
    for name, tensor in official.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.05)
        elif name.endswith("bn3.weight"):
            tensor.fill_(0.2)
    return official.eval()


@torch.no_grad()
def spread(official: Any, size: tuple[int, int], layer: str, std: float, mean: float = 0.0) -> None:
    """Give each output of a layer this deviation and mean on `image_of` ``size``, so that boxes and scores differ."""
    module = official.get_submodule(layer)
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda *call: outputs.append(call[2].transpose(0, 1).flatten(1)))
    official([image_of(size)])
    hook.remove()
    values = torch.cat(outputs, 1)
    factor = std / values.std(1)
    module.weight.mul_(factor.view(-1, *[1] * (module.weight.ndim - 1)))
    module.bias.copy_((module.bias - values.mean(1)) * factor + mean)


def two_stage(build: Callable[..., Any], size: tuple[int, int]) -> Any:
    """A two-stage detector of few proposals, which lie apart as its boxes do."""
    few = {"rpn_post_nms_top_n_test": 60, "box_detections_per_img": 40}
    official = seeded(build, num_classes=CLASSES + 1, min_size=size[0], max_size=size[1], **few)
    for layer, std in {
        "rpn.head.cls_logits": 2.0,
        "rpn.head.bbox_pred": 0.2,
        "roi_heads.box_predictor.cls_score": 1.5,
        "roi_heads.box_predictor.bbox_pred": 0.5,
    }.items():
        spread(official, size, layer, std)
    return official


FEW: dict[str, Any] = {"proposals": {"after": (2000, 60)}, "regions": {"detections": 40}}
"""The same of ours."""


def image_of(size: tuple[int, int]) -> Tensor:
    """A drawn image on 0..1."""
    return draw(0, size, (3, 6))[0] / 255


def converted(official: Any, preset: str, classes: int = CLASSES, **knobs: Any) -> Model:
    """Our model of the same weights."""
    config = change(zoo.preset(preset).model, num_classes=classes, **knobs)
    ours = zoo.model_class(preset)(config)  # type: ignore[call-arg]
    ours.load_state_dict(published.convert(official.state_dict(), preset, num_classes=classes))
    return ours.eval()


def both(official: Any, ours: Model, size: tuple[int, int]) -> tuple[dict[str, Tensor], Instances]:
    """What the two find in a drawn image of ``size``, which is the input's."""
    image = image_of(size)
    with torch.no_grad():
        theirs = official([image])[0]
        raw = ours(((image - MEAN) / STD)[None])
        found = ours.decode(raw, [ImageMeta(0, "", size, size)], CATEGORIES)[0].instances
    assert found is not None
    return theirs, found


def agree(theirs: dict[str, Tensor], found: Instances, least: int) -> None:
    """Equal labels, and scores and boxes up to rounding, of at least so many objects."""
    assert len(found) == len(theirs["scores"]) >= least
    assert len(set(found.labels.tolist())) > 1
    assert np.ptp(found.scores) > 0.01
    assert np.abs(found.scores - theirs["scores"].numpy()).max() < 1e-5
    assert np.array_equal(found.labels + 1, theirs["labels"])
    assert np.abs(found.boxes - theirs["boxes"].numpy()).max() < 2e-3


def test_mask_rcnn_v2() -> None:
    size = (128, 160)
    official = two_stage(detection.maskrcnn_resnet50_fpn_v2, size)
    theirs, found = both(official, converted(official, "maskrcnn-resnet50-v2", **FEW), size)
    agree(theirs, found, 40)
    assert found.masks is not None
    masks = theirs["masks"][:, 0] > 0.5
    assert masks.sum() > 1000
    differ = (found.masks.dense() != masks.numpy()).sum()
    assert differ <= 5, f"{differ} pixels differ, more than ties"


@pytest.mark.parametrize(
    ("build", "preset"),
    [
        (detection.fasterrcnn_mobilenet_v3_large_fpn, "fasterrcnn-mobilenetv3-large"),
        (detection.fasterrcnn_mobilenet_v3_large_320_fpn, "fasterrcnn-mobilenetv3-large-320"),
    ],
)
def test_faster_rcnn(build: Callable[..., Any], preset: str) -> None:
    """On MobileNetV3 the finest level alone serves the boxes; 224 x 288 pixels are 7 x 9 cells, then 4 x 5."""
    size = (224, 288)
    official = two_stage(build, size)
    theirs, found = both(official, converted(official, preset, **FEW), size)
    agree(theirs, found, 40)


def test_fcos() -> None:
    """The cells of P6 and P7 are no whole stride apart in 224 x 288 pixels."""
    size = (224, 288)
    official = seeded(detection.fcos_resnet50_fpn, num_classes=CLASSES + 1, min_size=size[0], max_size=size[1])
    spread(official, size, "head.regression_head.bbox_reg", 0.5, 2.0)
    spread(official, size, "head.regression_head.bbox_ctrness", 1.0)
    spread(official, size, "head.classification_head.cls_logits", 1.0, -2.0)
    with torch.no_grad():
        official.head.classification_head.cls_logits.bias[0] = -100.0  # nothing has learnt that there is a background
    theirs, found = both(official, converted(official, "fcos-resnet50-torchvision"), size)
    agree(theirs, found, 50)


def test_fcos_learns_the_same() -> None:
    """Up to the boxes, which torchvision compares without the square stride that the official code adds."""
    size = (224, 288)
    official = seeded(detection.fcos_resnet50_fpn, num_classes=CLASSES + 1, min_size=size[0], max_size=size[1])
    with torch.no_grad():
        official.head.classification_head.cls_logits.bias[0] = -100.0
    ours = converted(official, "fcos-resnet50-torchvision")
    image, target = draw(1, size, (4, 6))
    official.train()
    official.backbone.eval()
    images = ((image / 255 - MEAN) / STD)[None]
    with torch.no_grad():
        theirs = official([image / 255], [{"boxes": target.boxes, "labels": target.labels + 1}])
        batch = Batch(images, full_sizes(images), [target], [ImageMeta(1, "", size, size)])
        losses = ours.loss(ours(images, None, [target]), batch)
    assert losses["classification"].item() == pytest.approx(theirs["classification"].item(), rel=1e-4)
    assert losses["quality"].item() == pytest.approx(theirs["bbox_ctrness"].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("build", "preset", "options"),
    [
        (deeplabv3_mobilenet_v3_large, "deeplabv3-mobilenetv3-large-coco", {"aux_loss": True}),
        (lraspp_mobilenet_v3_large, "lraspp-mobilenetv3-large-coco", {}),
    ],
)
def test_semantic_models_on_mobilenet_v3(build: Callable[..., Any], preset: str, options: dict[str, Any]) -> None:
    official = seeded(build, num_classes=21, **options)
    net = converted(official, preset, 21)
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        theirs, raw = official(images), net(images)
    assert len(raw.others) == len(options)
    for ours, key in zip((raw.logits, *raw.others), ("out", "aux"), strict=False):
        enlarged = F.interpolate(ours, size=images.shape[2:], mode="bilinear")
        assert theirs[key].std() > 0.01
        assert torch.allclose(enlarged, theirs[key], atol=1e-4)
