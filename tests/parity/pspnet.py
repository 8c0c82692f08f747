"""PSPNet, and testing by sliding windows, against hszhao/semseg."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskkit import zoo
from maskkit.config import InputConfig, Tta
from maskkit.data.loader import normalise
from maskkit.infer.tta import probabilities
from tests.parity.goldens import Case
from tests.parity.semantic import batch, check, every_output_seen, image

_IMAGENET = InputConfig(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    (_augmented if case.manifest["kind"] == "POSTPROCESS" else _forward)(case)
    every_output_seen(case)


def _forward(case: Case) -> None:
    config = case.config
    name = f"pspnet-resnet{config['layers']}-ade20k"
    preset = zoo.preset(name)
    knobs = {"num_classes": config["classes"], "bins": tuple(config["bins"]), "auxiliary": config["aux_weight"]}
    model = case.filled(name, **knobs)
    given = batch(case, preset.input, config["classes"])
    seen: dict[str, Tensor] = {}
    body = model.backbone.body
    layers = {"layer0": body.maxpool, "ppm": model.pyramid, "cls_stride8": model.score}
    layers |= {f"layer{i}": getattr(body, f"layer{i}") for i in range(1, 5)}
    for key, layer in layers.items():
        layer.register_forward_hook(lambda _, __, out, key=key: seen.update({key: out}))
    raw = model(given.images)
    for key, value in seen.items():
        check(case, key, value)
    logits = model.select(raw).logits
    check(case, "logits", logits)
    assert (case.part("prediction", logits.argmax(1)) == case.stored("prediction").reshape(-1)).mean() > 0.999
    losses = model.loss_terms(raw, given)
    check(case, "loss_main", losses["semantic"])
    check(case, "loss_aux", losses["semantic/auxiliary"] / config["aux_weight"])
    (losses["semantic"] + losses["semantic/auxiliary"]).backward()
    gradients = {
        "grad.cls.0.weight": model.score[0].weight,
        "grad.ppm.features.3.1.weight": model.get_parameter("pyramid.reduce.3.0.weight"),
        "grad.aux.4.bias": model.auxiliary[4].bias,
    }
    for key, parameter in gradients.items():
        assert parameter.grad is not None
        check(case, key, parameter.grad)


class Toy(nn.Module):
    """The network of the case: two convolutions, enlarged with corner on corner."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 7, 8, 3), nn.Conv2d(8, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(images)))
        return F.interpolate(y, size=images.shape[2:], mode="bilinear", align_corners=True)


def _augmented(case: Case) -> None:
    config = case.config
    toy = Toy(config["classes"]).eval()
    toy.load_state_dict(case.weights())
    images = normalise(image(case), _IMAGENET)[None]
    part = config["stride_rate"].split("/")
    common = {
        "base": config["base_size"],
        "window": tuple(config["crop"]),
        "overlap": 1 - int(part[0]) / int(part[1]),
        "flip": True,
    }

    def mean_over(scales: tuple[float, ...]) -> Tensor:
        with torch.no_grad():
            found = probabilities(toy, images, Tta(scales=scales, **common), _IMAGENET)
        return found[0].permute(1, 2, 0)  # (H, W, C)

    for scale in config["scales"]:
        check(case, f"prob_scale_{scale}", mean_over((scale,)))
    mean = mean_over(tuple(config["scales"]))
    check(case, "prob_mean", mean)
    assert (case.part("prediction", mean.argmax(2)) == case.stored("prediction").reshape(-1)).mean() > 0.999
