"""The configuration of a run: frozen dataclasses, shown and overridden on the command line, written as JSON.

Presets fill them, `maskkit train --section.field VALUE` changes them, the resolved values go into the run folder and
into every checkpoint, and nothing else in the package holds a setting.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self, TypeVar

import cattrs

T = TypeVar("T")

SUPERVISION = {"masks": "masks", "label_map": "label maps", "boxes": "boxes", "tags": "image tags"}
"""Kinds of labels that a method can learn from, as people call them, the richest first."""


@dataclass(frozen=True)
class BoxOnly:
    """How a mask is learnt from its box alone (BoxInst); read by every method whose loss sees mask logits."""

    projection: float = 1.0
    """Weight of the projection term: the mask fills its box from side to side and from top to bottom."""
    pairwise: float = 1.0
    """Weight of the pairwise term: neighbours of one colour belong together."""
    threshold: float = 0.3
    """Least colour similarity, 0 to 1, from which on two neighbours are taken for one object."""
    dilation: int = 2
    """Distance to the eight neighbours in cells of the mask grid."""
    warmup: float = 0.1
    """Share of the training over which the pairwise term grows to its full weight."""
    skip_bottom: int = 0
    """Rows at the bottom of the original image whose colours do not count (BoxInst on COCO: 10)."""


@dataclass(frozen=True)
class PlainVit:
    """How a plain vision transformer (timm's EVA family) becomes a backbone; no other backbone reads it."""

    patch: int = 16
    """Side of a patch in pixels; weights for patches of another size are resampled."""
    window: int = 16
    """Side, in patches, of the windows within which most blocks attend; 0: every block sees the whole image."""
    global_blocks: tuple[int, ...] = ()
    """Blocks that see the whole image; the last one of each quarter when none is named."""
    relative: int = 0
    """Side in pixels of the images whose relative positions the blocks learn (ViTDet); 0: they learn none."""
    width: int = 256
    """Channels of the maps that the pyramid gives."""
    drop_path: float = 0.0
    """Chance that the last block is left out in training; that of earlier ones grows towards it."""


@dataclass(frozen=True)
class BackboneConfig:
    """The network that gives the features."""

    name: str = "resnet50"
    """Any timm model with ``features_only``, by its name there."""
    weights: str | None = None
    """What a training starts from: a local file with timm's names, ``hub`` for timm's own download, or None."""
    norm: Literal["frozen", "train"] = "frozen"
    """Batch norm: ``frozen`` keeps its statistics and its affine values, which is right for small batches."""
    frozen_stride: int = 0
    """Layers up to this stride keep their weights (4: the stem and the first stage); 0 trains all."""
    pad_same: bool = False
    """TensorFlow's padding, which weights that come from TensorFlow need."""
    stride_in_1x1: bool = False
    """ResNet stages stride in their first 1x1 convolution (Caffe, detectron2's R-50) instead of the 3x3."""
    vit: PlainVit = field(default_factory=PlainVit)


@dataclass(frozen=True)
class ModelConfig:
    """What every method has; a method's own config adds its knobs and the configs of its parts."""

    num_classes: int = 80
    """Classes without background."""

    @property
    def backbone_weights(self) -> str | None:
        """Weights that the backbone of a new training starts from, None without a choice."""
        return None

    def portable(self) -> Self:
        """The same without what means something on one machine alone: the file of first weights."""
        return self


@dataclass(frozen=True)
class BackboneModelConfig(ModelConfig):
    """A method on a backbone of the user's choice."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    @property
    def backbone_weights(self) -> str | None:
        """Weights that the backbone of a new training starts from, None without a choice."""
        return self.backbone.weights

    def portable(self) -> Self:
        """The same without the file of first weights."""
        return replace(self, backbone=replace(self.backbone, weights=None))


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input; travels in every checkpoint."""

    size: tuple[int, int] = (550, 550)
    """Height and width of the network's input in pixels; for ``shorter``, the shorter side and the longest allowed."""
    resize: Literal["stretch", "pad", "shorter"] = "stretch"
    """``stretch`` fills the input and gives up the aspect ratio (YOLACT); ``pad`` keeps it, padding right and below;
    ``shorter`` keeps it too and lets the input be as large as the image asks for (detectron2, torchvision)."""
    antialias: bool = False
    """Whether shrinking averages over what it leaves out, as Pillow does and detectron2 by it."""
    mean: tuple[float, float, float] = (123.68, 116.78, 103.94)
    """RGB mean on 0..255."""
    std: tuple[float, float, float] = (58.40, 57.12, 57.38)
    """RGB divisor on 0..255."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images, in the order of application; zero or None switches one off."""

    copy_paste: float = 0.0
    """Chance that objects of another training image are pasted in (Ghiasi et al., 2021)."""
    photometric: bool = True
    """Brightness, contrast, saturation and hue as in SSD."""
    expand: float = 4.0
    """Largest factor by which the image is put into a larger field of the mean colour (SSD); 1 switches it off."""
    iou_crop: bool = True
    """Random crop that keeps at least one object by IoU (SSD)."""
    flip: float = 0.5
    """Chance of a left-right mirror."""
    vertical_flip: float = 0.0
    """Chance of a top-bottom mirror; right for microscopes and aerial images."""
    scale_jitter: tuple[float, float] | None = None
    """Range of a random scale of the resized image, cropped or padded back to the input size."""
    short_sides: tuple[int, ...] = ()
    """Lengths of the shorter side of which each image takes one, for ``input.resize`` ``shorter``."""


@dataclass(frozen=True)
class TrainConfig:
    """How the weights are found."""

    epochs: float = 12.0
    """Passes over the training images; ``steps`` wins where it is set."""
    steps: int | None = None
    """Optimizer steps of the whole run."""
    batch: int = 8
    """Images per step over all processes."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-3
    """Peak learning rate at this ``batch``."""
    backbone_lr: float = 1.0
    """Factor on the learning rate for the backbone."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_norm: bool = True
    """Whether normalisation layers and biases decay too."""
    decay_bias: bool = False
    """Whether biases outside of normalisation layers decay even where ``decay_norm`` is off, as in detectron2."""
    schedule: Literal["steps", "cosine", "poly"] = "cosine"
    """``poly`` is the power 0.9 of the share that is left of the run."""
    milestones: tuple[float, ...] = (0.35, 0.75, 0.875, 0.9375)
    """Shares of the run at which ``steps`` divides the rate by ten."""
    warmup: int = 500
    """Steps of linear warm-up."""
    warmup_from: float = 0.1
    """Share of the rate with which the warm-up begins."""
    clip: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of a running average of the weights, which is what is evaluated and saved; 0 keeps none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of the forward pass; losses are always fp32."""
    channels_last: bool = True
    compile: bool = False
    workers: int = 2
    """Loader processes."""
    seed: int = 0
    eval_every: float = 1.0
    """Epochs between evaluations; the last step is always evaluated. 0 evaluates only then."""
    save_every: int = 200
    """Steps between writings of ``last``."""
    tensorboard: bool = False
    """Whether curves are written for TensorBoard too."""


@dataclass(frozen=True)
class Pretraining:
    """How a plain vision transformer learns from images alone; the paper's recipe, but for network and batch."""

    student: str = "eva_tiny_patch16_224"
    """What learns: a model of timm's EVA family."""
    size: int = 224
    """Side of its images in pixels."""
    teacher: str = "timm:vit_large_patch14_clip_quickgelu_224.openai"
    """What is to be predicted: features of a timm model, CLIP in the paper; ``random:NAME`` gives it random weights."""
    teacher_weights: str = "hub"
    """A file with timm's names, or ``hub`` for timm's own download."""
    mask: float = 0.4
    """Share of the patches that the student does not see."""
    crop: float = 0.2
    """Least share of an image's area that is shown."""
    flip: float = 0.5
    """Chance of a left-right mirror."""
    epochs: float = 150.0
    """Passes over the images; ``steps`` wins where it is set."""
    steps: int | None = None
    """Optimizer steps of the whole run."""
    batch: int = 64
    """Images per step over all processes (paper: 4096)."""
    lr: float = 1e-3
    """Peak learning rate at this ``batch``; a cosine lets it fall to zero."""
    warmup: int = 500
    """Steps of linear warm-up from zero, over a tenth of a short run at most."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip: float = 3.0
    """Largest gradient norm."""
    drop_path: float = 0.1
    """Chance that the last block is left out in training; that of earlier ones grows towards it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Autocast of student and teacher; the loss is always fp32."""
    workers: int = 2
    """Loader processes."""
    seed: int = 0
    save_every: int = 200
    """Steps between writings of the weights."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what of their labels is used."""

    train: str = ""
    """Folder or annotation file."""
    val: str | None = None
    """Folder or annotation file of the validation set; found in the folder, or split off, when not given."""
    labels: Literal["masks", "boxes", "tags"] = "masks"
    """What the loss may see; evaluation always sees everything."""
    saliency: str | None = None
    """Folder of grey images named as the training images, bright where something stands out (EPS)."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """What training does with records that the data-set doctor calls unusable."""
    val_split: float = 0.2
    """Share of images kept for validation when there is no validation set."""

    @property
    def supervision(self) -> frozenset[str]:
        """Kinds of labels (keys of `SUPERVISION`) that ``labels`` leaves to the loss."""
        if self.labels == "masks":
            return frozenset(SUPERVISION)
        return frozenset({"boxes", "tags"} if self.labels == "boxes" else {"tags"})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the result of a training."""

    preset: str
    model: ModelConfig
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Tta:
    """Test-time augmentation of a semantic model; the defaults change nothing."""

    scales: tuple[float, ...] = (1.0,)
    """Sizes of the image, as multiples of ``base``."""
    flip: bool = False
    """Whether the mirror image is averaged in."""
    window: tuple[int, int] | None = None
    """Height and width of a sliding window; None takes the whole image at once."""
    overlap: float = 1 / 3
    """Share of a window, at least, that the next one covers again."""
    base: int | None = None
    """Longer side of the image at scale 1; that of the network's input when not given."""
    crf: bool = False
    """Whether a fully connected CRF refines the result (DeepLab v1 and v2)."""

    @property
    def plain(self) -> bool:
        """Whether nothing is augmented."""
        return self == Tta()


@dataclass(frozen=True)
class PseudoMasks:
    """How a model of image tags turns what it sees of an image, whose tags are known, into a label map."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Sizes at which the image is seen, mirrored too, as multiples of ``base``."""
    base: int | None = None
    """Longer side of the image at scale 1; that of the network's input when not given."""
    threshold: float = 0.2
    """Score of the background beside the classes, whose best pixel has 1."""


def change(config: T, **changes: Any) -> T:
    """``config`` with some fields changed; a mapping changes fields of a part: ``backbone={"name": "resnet18"}``.

    Raises ``TypeError`` for an unknown field, and for a part that is given neither as a mapping nor as its own type.
    """
    known = {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in known:
            raise TypeError(f"{type(config).__name__} has no field {name!r}; it has {', '.join(known)}")
        part = known[name]
        if isinstance(value, Mapping):
            value = change(part, **value)
        elif is_dataclass(part) and not is_dataclass(value):
            raise TypeError(
                f"{name} is a {type(part).__name__}: change its fields by a mapping, {name}={{FIELD: VALUE}}, "
                f"not by {value!r}"
            )
        values[name] = value
    return replace(config, **values)  # type: ignore[type-var]


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_unstructure_hook_func(  # the fields of the method's own config, not only the declared ones
    lambda kind: kind is ModelConfig, lambda v: {f.name: _converter.unstructure(getattr(v, f.name)) for f in fields(v)}
)
_converter.register_structure_hook(int | None, lambda v, _: None if v is None else int(v))
_converter.register_structure_hook(float | None, lambda v, _: None if v is None else float(v))
_converter.register_structure_hook(str | None, lambda v, _: None if v is None else str(v))


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON types."""
    return json.loads(json.dumps(_converter.unstructure(config)))


def from_dict(data: dict[str, Any], kind: type[T]) -> T:
    """The config dataclass ``kind`` of `to_dict`'s answer. Unknown names raise ``ValueError``, missing ones default."""
    try:
        return _converter.structure(data, kind)
    except Exception as error:
        reasons = "; ".join(cattrs.transform_error(error))
        raise ValueError(f"configuration of {kind.__name__} cannot be read: {reasons}") from error
