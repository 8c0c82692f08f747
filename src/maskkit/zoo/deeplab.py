"""DeepLab v1 to v3+ and LR-ASPP: key maps of published checkpoints, and presets.

kazuto1011/deeplab-pytorch (v1 and v2, Caffe's weights, images in BGR), VainF/DeepLabV3Plus-Pytorch (v3 and v3+),
mmsegmentation (v3 and v3+), torchvision (v3, also on MobileNetV3, and LR-ASPP), and TensorFlow's v3 on MobileNetV2
with batch norm folded into its head.
"""

import re
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from maskkit.config import BackboneConfig, InputConfig, TrainConfig, change
from maskkit.errors import DataError
from maskkit.models.deeplab import Deeplab, DeeplabConfig
from maskkit.zoo import mmsegmentation
from maskkit.zoo.card import Method, Preset, Weights
from maskkit.zoo.class_names import VOC_SEMANTIC
from maskkit.zoo.key_maps import Rules, mobilenet_v3, rename_by
from maskkit.zoo.recipes import (
    CAFFE_MEAN,
    FLIP,
    HALF,
    MOBILENET,
    NO_STD,
    TORCHVISION_SEMANTIC,
    TORCHVISION_WEIGHTS,
    Recipe,
    imagenet_input,
    small_semantic,
)

_UNITS = {"reduce": ("conv1", "bn1"), "conv3x3": ("conv2", "bn2"), "increase": ("conv3", "bn3")}
_MOBILE_STAGES = (1, 2, 3, 4, 3, 3, 1)
_MOBILE_UNITS = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
_MOBILE_FIRST = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From official names to ours. Raises `DataError` for an unknown name."""
    if mmsegmentation.is_mmsegmentation(state):
        return _from_mmsegmentation(state)
    if any(".increase." in n for n in state):
        return _from_caffe(state)
    if "image_pooling.weight" in state:
        return _from_tensorflow(state)
    if "backbone.0.0.weight" in state:
        return _from_mobilenet_v3(state)
    plus = any(n.startswith("classifier.aspp.") for n in state)
    return {_from_torch(n, plus): t for n, t in state.items()}


def _from_caffe(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name.removeprefix("base.")
        if m := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", short):
            new = f"backbone.body.{m[1]}1.{m[2]}"
        elif m := re.fullmatch(r"layer([2-5])\.block(\d+)\.shortcut\.(conv|bn)\.(\w+)", short):
            part = 0 if m[3] == "conv" else 1
            new = f"backbone.body.layer{int(m[1]) - 1}.{int(m[2]) - 1}.downsample.{part}.{m[4]}"
        elif m := re.fullmatch(r"layer([2-5])\.block(\d+)\.(\w+)\.(conv|bn)\.(\w+)", short):
            part = _UNITS[m[3]][m[4] == "bn"]
            new = f"backbone.body.layer{int(m[1]) - 1}.{int(m[2]) - 1}.{part}.{m[5]}"
        elif m := re.fullmatch(r"aspp\.c(\d)\.(\w+)", short):
            new = f"score.branches.{m[1]}.{m[2]}"
        elif m := re.fullmatch(r"fc\.(\w+)", short):
            new = f"score.{m[1]}"
        else:
            raise DataError(f"{name!r} is not a tensor in checkpoints of DeepLab v1 or v2")
        renamed[new] = tensor
    stem = "backbone.body.conv1.weight"
    if stem in renamed:
        renamed[stem] = renamed[stem].flip(1)  # Caffe's images are BGR
    return renamed


def _from_torch(name: str, plus: bool) -> str:
    """Our name for one of VainF's or torchvision's; ``plus`` means v3+."""
    # VainF's v3 has torchvision's names with the head one level deeper
    short = name if plus else name.replace("classifier.classifier.", "classifier.")
    layers = {"0": "refine.0.0", "1": "refine.0.1", "3": "score"} if plus else {"1": "refine.0.0", "2": "refine.0.1"}
    last = r"classifier\.classifier\.(0|1|3)\.(\w+)" if plus else r"classifier\.(1|2|4)\.(\w+)"
    if m := re.fullmatch(r"backbone\.((?:conv1|bn1|layer\d)\..+)", short):
        return f"backbone.body.{m[1]}"
    if m := re.fullmatch(r"backbone\.(?:low|high)_level_features\.(\d+)\.(.+)", short):
        return _mobile(int(m[1]), m[2])
    if m := re.fullmatch(r"aux_classifier\.([014])\.(\w+)", short):
        return f"auxiliary.{m[1]}.{m[2]}"
    if m := re.fullmatch(r"classifier\.(?:0|aspp)\.convs\.4\.(\d)\.(\w+)", short):
        return f"aspp.pool.{int(m[1]) - 1}.{m[2]}"  # the official list starts with the pooling itself
    if m := re.fullmatch(r"classifier\.(?:0|aspp)\.convs\.(\d\.\d\.\w+)", short):
        return f"aspp.branches.{m[1]}"
    if m := re.fullmatch(r"classifier\.(?:0|aspp)\.project\.(\d\.\w+)", short):
        return f"aspp.project.{m[1]}"
    if m := re.fullmatch(r"classifier\.project\.(\d\.\w+)", short):
        return f"low.{m[1]}"
    if m := re.fullmatch(last, short):
        return f"{layers.get(m[1], 'score')}.{m[2]}"
    raise DataError(f"{name!r} is not a tensor in checkpoints of DeepLab v3")


def _from_mobilenet_v3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's v3 and LR-ASPP on MobileNetV3, whose batch norm has an epsilon of 1e-3, with us 1e-5."""
    inner = {n: t for n, t in state.items() if n.startswith("backbone.")}
    renamed = rename_by(mobilenet_v3(r"backbone\."), inner, "DeepLab v3")
    renamed = {n: t + (1e-3 - 1e-5) if n.endswith(".running_var") else t for n, t in renamed.items()}
    heads = {n: t for n, t in state.items() if n not in inner}
    if "classifier.cbr.0.weight" in heads:
        return renamed | rename_by(_LITE, heads, "LR-ASPP")
    return renamed | {_from_torch(n, False): t for n, t in heads.items()}


_LITE: Rules = (
    (r"classifier\.cbr\.([01])\.(\w+)", r"score.features.\1.\2"),
    (r"classifier\.scale\.1\.(\w+)", r"score.gate.\1"),
    (r"classifier\.(low|high)_classifier\.(\w+)", r"score.\1.\2"),
)


def _mobile(number: int, rest: str) -> str:
    """timm's name for a tensor of block ``number`` of torchvision's MobileNetV2; 0 is the stem."""
    unit, _, leaf = rest.rpartition(".")
    if number == 0:
        return f"backbone.body.{('conv_stem', 'bn1')[int(unit)]}.{leaf}"
    units = _MOBILE_FIRST if number == 1 else _MOBILE_UNITS
    stage, block = 0, number - 1
    while block >= _MOBILE_STAGES[stage]:
        block -= _MOBILE_STAGES[stage]
        stage += 1
    return f"backbone.body.blocks.{stage}.{block}.{units[unit.removeprefix('conv.')]}.{leaf}"


_MMSEGMENTATION: Rules = (
    *mmsegmentation.unit(r"image_pool\.1", "aspp.pool"),
    *mmsegmentation.unit(r"aspp_modules\.(\d)", r"aspp.branches.\1"),
    *mmsegmentation.separable(r"aspp_modules\.(\d)", r"aspp.branches.\1"),
    *mmsegmentation.unit("bottleneck", "aspp.project"),
    *mmsegmentation.unit("c1_bottleneck", "low"),
    *mmsegmentation.separable(r"sep_bottleneck\.(\d)", r"refine.\1"),
    (r"conv_seg\.(\w+)", r"score.\1"),
)


def _from_mmsegmentation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmsegmentation concatenates the image's mean first and the features of stride 4 last; with us it is the other way
    round."""
    renamed = mmsegmentation.rename(state, _MMSEGMENTATION, "DeepLab v3")
    project = renamed.get("aspp.project.0.weight")
    if project is not None:
        renamed["aspp.project.0.weight"] = project.roll(-project.shape[0], 1)  # as many channels as each branch
    for name in [n for n in renamed if n.startswith(("refine.0.0.", "refine.0.1.", "refine.0.3."))]:
        low = renamed["low.0.weight"].shape[0]
        axis = 1 if name.startswith("refine.0.3.") else 0  # the depthwise layers, and what the pointwise one reads
        if renamed[name].ndim > axis:
            renamed[name] = renamed[name].roll(low, axis)
    return renamed


def _from_tensorflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's v3 on MobileNetV2: timm's names for the backbone, biases where our head has batch norm.

    Batch norm with mean 0, variance ``1 - eps`` and weight 1 only adds its bias.
    """
    units = {"aspp0": "aspp.branches.0", "image_pooling": "aspp.pool", "concat_projection": "aspp.project"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head, leaf = name.split(".", 1)
        if head == "logits":
            renamed[f"score.{leaf}"] = tensor
        elif head not in units:
            renamed[f"backbone.body.{name}"] = tensor
        elif leaf == "weight":
            # TensorFlow concatenates the image's mean first, we last
            joined = torch.cat(tensor.chunk(2, 1)[::-1], 1) if head == "concat_projection" else tensor
            renamed[f"{units[head]}.0.weight"] = joined
        else:
            neutral = {
                "weight": torch.ones_like(tensor),
                "bias": tensor,
                "running_mean": torch.zeros_like(tensor),
                "running_var": torch.full_like(tensor, 1 - 1e-5),
            }
            renamed |= {f"{units[head]}.1.{n}": t for n, t in neutral.items()}
    return renamed


# presets --------------------------------------------------------------------------------------------------------------

_VAINF_WEIGHTS = Weights("github.com/VainF/DeepLabV3Plus-Pytorch", "MIT")
_VAINF = Recipe(
    imagenet_input((513, 513), "pad"),
    replace(FLIP, scale_jitter=(0.5, 2.0)),
    TrainConfig(epochs=45.4, batch=16, lr=0.01, backbone_lr=0.1, weight_decay=1e-4),  # 30,000 steps on VOC train_aug
    _VAINF_WEIGHTS,
    VOC_SEMANTIC,
)
_KAZUTO = Weights("github.com/kazuto1011/deeplab-pytorch", "MIT")
_CAFFE = replace(
    _VAINF,
    input=InputConfig((513, 513), "pad", mean=CAFFE_MEAN, std=NO_STD),
    train=TrainConfig(epochs=18.9, batch=10, lr=2.5e-3, backbone_lr=0.1),  # 20,000 steps
    weights=_KAZUTO,
)
_CAFFE_RESNET101 = BackboneConfig("resnet101", stride_in_1x1=True)


def _official(version: Literal["v3", "v3+"], backbone: str, miou: float, key: str, **knobs: Any) -> Preset:
    """VainF's model; ``key`` is that of its file at Dropbox."""
    config = DeeplabConfig(num_classes=21, version=version, backbone=BackboneConfig(backbone), **knobs)
    name = "deeplabv3plus" if version == "v3+" else "deeplabv3"
    file = f"best_{name}_{'mobilenet' if backbone.startswith('mobilenet') else backbone}_voc_os16.pth"
    return _VAINF.preset(
        f"{name}-{backbone}",
        config,
        f"VOC 2012 val mIoU {miou} (VainF), stride 16",
        weights=_VAINF_WEIGHTS.at(f"https://www.dropbox.com/s/{key}/{file}?dl=1"),
    )


def _torchvision(name: str, theirs: str, backbone: str, miou: float, stride: int = 8, **knobs: Any) -> Preset:
    config = DeeplabConfig(
        num_classes=21,
        backbone=BackboneConfig(backbone),
        output_stride=stride,
        rates=(12, 24, 36),
        dropout=0.5,
        auxiliary=0.5,
        **knobs,
    )
    paper = f"COCO val2017, VOC's classes, mIoU {miou} (torchvision), stride {stride}"
    weights = replace(TORCHVISION_WEIGHTS, torchvision=f"DeepLabV3_{theirs}_Weights.COCO_WITH_VOC_LABELS_V1")
    recipe = replace(TORCHVISION_SEMANTIC, train=_VAINF.train, weights=weights)
    return recipe.preset(f"deeplabv3-{name}-coco", config, paper)


def _lite() -> Preset:
    """torchvision's LR-ASPP."""
    config = DeeplabConfig(
        num_classes=21,
        version="lite",
        backbone=BackboneConfig("mobilenetv3_large_100"),
        width=128,
        low_stride=-8,
        first_block=True,
    )
    weights = replace(TORCHVISION_WEIGHTS, torchvision="LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1")
    recipe = replace(TORCHVISION_SEMANTIC, train=_VAINF.train, weights=weights)
    paper = "COCO val2017, VOC's classes, mIoU 57.9 (torchvision), stride 16"
    return recipe.preset("lraspp-mobilenetv3-large-coco", config, paper)


def _mmsegmentation(version: str, data: str, layers: int, miou: float, end: str, crop: int = 0) -> Preset:
    plus = version == "v3+"
    config = DeeplabConfig(
        version="v3+" if plus else "v3",
        width=512,
        output_stride=8,
        rates=(12, 24, 36),
        join="3x3",
        separable=plus,
        refine=2 if plus else 0,
        align_corners=bool(crop),
        **mmsegmentation.fields(layers, data),
    )
    return mmsegmentation.preset("deeplabv3plus" if plus else "deeplabv3", layers, data, config, miou, end, crop)


def _small(name: str, size: tuple[int, int], ours: str | None = None, **knobs: Any) -> Preset:
    config = change(DeeplabConfig(num_classes=21, width=128, backbone=MOBILENET), **knobs)
    return small_semantic(name, config, size, ours)


METHOD = Method(
    title="DeepLab v1, v2, v3, v3+, LR-ASPP",
    paper="Chen, Papandreou, Kokkinos, Murphy, Yuille: DeepLab. ICLR 2015 to ECCV 2018",
    model=Deeplab,
    presets=(
        _CAFFE.preset(
            "deeplabv1-vgg16",
            DeeplabConfig(num_classes=21, version="v1", backbone=BackboneConfig("vgg16"), output_stride=8, width=1024),
            "VOC 2012 val mIoU 67.6 with CRF (LargeFOV)",
            train=replace(_CAFFE.train, lr=1e-2, batch=20),
            weights=None,
        ),
        _CAFFE.preset(
            "deeplabv1-resnet101",
            DeeplabConfig(num_classes=21, version="v1", backbone=_CAFFE_RESNET101, output_stride=8),
        ),
        _CAFFE.preset(
            "deeplabv2-resnet101",
            DeeplabConfig(
                num_classes=21,
                version="v2",
                backbone=_CAFFE_RESNET101,
                output_stride=8,
                rates=(6, 12, 18, 24),
                scales=(0.5, 0.75),
            ),
            "VOC 2012 val mIoU 76.35, 77.69 with CRF",
            weights=_KAZUTO.at(
                "https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/"
                "deeplabv2_resnet101_msc-vocaug-20000.pth"
            ),
        ),
        _official("v3", "resnet50", 76.9, "3eag5ojccwiexkq"),
        _official("v3", "resnet101", 77.3, "vtenndnsrnh4068"),
        _torchvision("resnet50", "ResNet50", "resnet50", 66.4),
        _torchvision("resnet101", "ResNet101", "resnet101", 67.4),
        _torchvision(
            "mobilenetv3-large",
            "MobileNet_V3_Large",
            "mobilenetv3_large_100",
            60.3,
            stride=16,
            auxiliary_stride=-8,
            first_block=True,
        ),
        _lite(),
        _official("v3+", "resnet50", 77.2, "dgxyd3jkyz24voa"),
        _official("v3+", "resnet101", 78.3, "bm3hxe7wmakaqc5"),
        _official("v3+", "mobilenetv2_100", 71.1, "0idrhwz6opaj7q4", pad_first=True),
        _mmsegmentation("v3", "ade20k", 50, 42.42, "20200614_185028-0bb3f844"),
        _mmsegmentation("v3", "ade20k", 101, 44.08, "20200615_021256-d89c7fa4"),
        _mmsegmentation("v3", "cityscapes", 50, 79.32, "20200606_113404-b92cfdd4"),
        _mmsegmentation("v3", "cityscapes", 101, 80.20, "20200606_113503-9e428899"),
        _mmsegmentation("v3", "voc", 50, 77.68, "20200613_161546-2ae96e7e"),
        _mmsegmentation("v3", "voc", 101, 77.92, "20200613_161432-0017d784"),
        _mmsegmentation("v3+", "ade20k", 50, 42.72, "20200614_185028-bf1400d8"),
        _mmsegmentation("v3+", "ade20k", 101, 44.60, "20200615_014139-d5730af7"),
        _mmsegmentation("v3+", "cityscapes", 50, 80.09, "20200606_114049-f9fb496d"),
        _mmsegmentation("v3+", "cityscapes", 101, 80.97, "20200606_114143-068fcfe9"),
        _mmsegmentation("v3+", "cityscapes", 50, 79.83, "20200606_210233-0e9dfdc4", 769),
        _mmsegmentation("v3+", "cityscapes", 101, 80.65, "20220406_154720-dfcc0b68", 769),
        _mmsegmentation("v3+", "voc", 50, 76.81, "20200613_161759-e1b43aa9"),
        _mmsegmentation("v3+", "voc", 101, 78.62, "20200613_205333-faf03387"),
        _VAINF.preset(
            "deeplabv3-mobilenetv2-voc",
            DeeplabConfig(num_classes=21, backbone=MOBILENET, rates=(), refine=0, align_corners=True),
            "VOC 2012 val mIoU 75.32 (TensorFlow zoo, float weights)",
            input=InputConfig((513, 513), "stretch", mean=HALF, std=HALF),
            weights=Weights("github.com/google-coral/test_data, de-quantised", "Apache-2.0"),
        ),
        _small("deeplabv3-mobilenetv2-320", (320, 320), rates=(4, 8, 12)),
        _small("deeplabv3plus-mobilenetv2-320", (320, 320), version="v3+", rates=(4, 8, 12)),
        *(
            _small(
                f"deeplab{name}-mobilenetv2-camvid",
                (360, 480),
                f"CamVid val mIoU {miou}, 20 min on 1 core",
                num_classes=11,
                **knobs,
            )
            for name, miou, knobs in (
                ("v1", 0.416, {"version": "v1", "output_stride": 8}),
                ("v2", 0.355, {"version": "v2", "output_stride": 8, "rates": (3, 6, 9, 12)}),
                ("v3", 0.441, {"rates": (4, 8, 12)}),
                ("v3plus", 0.542, {"version": "v3+", "rates": (4, 8, 12)}),
            )
        ),
        _small("deeplabv3plus-mobilenetv2-256", (256, 256), version="v3+", rates=(2, 4, 6)),
    ),
    rename=rename,
    agreement="VainF/DeepLabV3Plus-Pytorch, kazuto1011/deeplab-pytorch, 6 cases; mmsegmentation, 4; torchvision live",
)
