"""Which preset a repository of transformers is, from its ``config.json`` and ``preprocessor_config.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maskkit import zoo
from maskkit.config import InputConfig, ModelConfig, change
from maskkit.errors import DataError
from maskkit.prediction import Categories
from maskkit.zoo.class_names import COCO_PANOPTIC, DATA_SETS

_SWINS: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 7): "mask2former-swin-t",
    (96, (2, 2, 18, 2), 7): "mask2former-swin-s",
    (128, (2, 2, 18, 2), 12): "mask2former-swin-b",
    (192, (2, 2, 18, 2), 12): "mask2former-swin-l",
}
_RESNETS: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "mask2former-resnet50", (3, 4, 23, 3): "mask2former-resnet101"}
_TASKS = ("instance", "semantic", "panoptic")


@dataclass(frozen=True)
class Network:
    """What weights of transformers are for us."""

    preset: str
    model: ModelConfig
    input: InputConfig
    classes: Categories


def recognise(config: Mapping[str, Any], processor: Mapping[str, Any], name: str) -> Network:
    """The preset, with sizes and classes of ``config`` and the input of ``processor``.

    transformers' configuration does not say the task; the name of the repository ends with it. Raises `DataError` for
    what is not known.
    """
    if config.get("model_type") != "mask2former":
        raise DataError("its weights are of no network that maskkit recognises")
    preset = _backbone(config.get("backbone_config"))
    task = next((task for task in _TASKS if name.endswith(f"-{task}")), None)
    if task is None:
        raise DataError("it does not say whether it is for instances, label maps or panoptic images")
    try:
        model = change(
            zoo.preset(preset).model,
            task=task,
            num_classes=len(config["id2label"]),
            width=config["hidden_dim"],
            heads=config["num_attention_heads"],
            pixel_decoder={"layers": config["encoder_layers"], "feedforward": config["encoder_feedforward_dim"]},
            query_decoder={
                "queries": config["num_queries"],
                "layers": config["decoder_layers"] - 1,
                "feedforward": config["dim_feedforward"],
            },
        )
        names = [str(config["id2label"][key]) for key in sorted(config["id2label"], key=int)]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"its config.json is not that of a Mask2Former ({error})") from None
    return Network(preset, model, _input(processor, zoo.preset(preset).input), _classes(names, task))


def _backbone(config: Any) -> str:
    """The preset with this backbone."""
    parts: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    depths = tuple(parts["depths"]) if isinstance(parts.get("depths"), list) else ()
    found = None
    if parts.get("model_type") == "swin":
        found = _SWINS.get((parts.get("embed_dim", 96), depths, parts.get("window_size", 7)))
    elif parts.get("model_type") == "resnet" and parts.get("layer_type", "bottleneck") == "bottleneck":
        found = _RESNETS.get(depths)
    if found is None:
        raise DataError("its backbone is none of the Swin transformers and ResNets of the presets")
    return found


def _classes(names: list[str], task: str) -> Categories:
    if task != "panoptic":
        return Categories.of(names) if task == "instance" else Categories.of((), names)
    known = (COCO_PANOPTIC, DATA_SETS["cityscapes-panoptic"])
    same = next((known for known in known if len(known) == len(names)), None)
    if same is None:
        raise DataError("it does not say which classes are things")
    return Categories(tuple(names), same.ids, same.things)


def _input(processor: Mapping[str, Any], input: InputConfig) -> InputConfig:
    """The input that the image processor makes: Pillow's bilinear filter, numbers from 0 to 1 normalised."""
    size = processor.get("size")
    parts: Mapping[str, Any] = size if isinstance(size, Mapping) else {}
    pairs = ((parts.get("shortest_edge"), parts.get("longest_edge")), (parts.get("height"), parts.get("width")))
    for (first, second), resize in zip(pairs, ("shorter", "stretch"), strict=True):
        if isinstance(first, int) and isinstance(second, int) and first > 0 and second > 0:
            input = replace(input, size=(first, second), resize=resize)
            break
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if all(isinstance(three, list) and len(three) == 3 for three in (mean, std)):
        input = replace(input, mean=tuple(255 * n for n in mean), std=tuple(255 * n for n in std))  # type: ignore[union-attr]
    return replace(input, antialias=True, interpolation="bilinear")
