"""The configuration of a run: frozen dataclasses, shown and overridden on the command line, written as JSON.

Presets fill them, `maskkit train --section.field VALUE` changes them, and the resolved values are written to the run
folder and into every checkpoint. Nothing else in the package holds a setting.
"""

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar

from maskkit.errors import MaskkitError
from maskkit.plain_types import change as change
from maskkit.plain_types import reasons, strict_converter
from maskkit.ranges import Colour, Count, Decay, Factor, Part, Pixels, Positive, Seed, Share, Weight, Whole, Workers

T = TypeVar("T")

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Trackers, by the names of their packages."""

SUPERVISION = {"masks": "masks", "label_map": "label maps", "boxes": "boxes", "tags": "image tags"}
"""Kinds of labels that a method can learn from, as people call them, the richest first."""


@dataclass(frozen=True)
class BoxOnly:
    """How masks are trained on boxes alone (BoxInst, CVPR 2021)."""

    projection: Weight = 1.0
    """Weight of the projection term: the mask's extent in x and y equals that of its box."""
    pairwise: Weight = 1.0
    """Weight of the pairwise term: neighbouring pixels of similar colour have the same label."""
    threshold: Share = 0.3
    """Colour similarity, 0 to 1, above which two neighbours are assumed to have the same label."""
    dilation: Count = 2
    """Distance to the eight neighbours, in cells of the mask grid."""
    warmup: Share = 0.1
    """Share of the training over which the pairwise term grows to its full weight."""
    skip_bottom: Whole = 0
    """Rows at the bottom of the original image whose colours are ignored (BoxInst on COCO: 10)."""


@dataclass(frozen=True)
class PlainVit:
    """How a plain vision transformer (timm's EVA family) is used as a backbone; other backbones ignore it."""

    patch: Count = 16
    """Side of a patch in pixels; weights for another patch size are resampled."""
    window: Whole = 16
    """Side, in patches, of the attention windows of most blocks; 0: every block attends to the whole image."""
    global_blocks: tuple[Whole, ...] = ()
    """Blocks that attend to the whole image; empty: the last block of each quarter."""
    grid: Whole = 0
    """Places along a side of the position embedding, which is resized to the image; 0: timm's number."""
    relative: Whole = 0
    """Image side in pixels for which relative position embeddings are made (ViTDet); 0: none."""
    relative_resize: Literal["linear", "geometric"] = "linear"
    """How they are resized to images of another size: ``linear`` by the distance (ViTDet). ``geometric`` does so in
    training; in evaluation near distances keep their embedding and far ones share a few (BEiT, EVA's evaluation)."""
    width: Count = 256
    """Channels of the pyramid's maps."""
    drop_path: Decay = 0.0
    """Stochastic depth rate of the last block; the rate grows linearly from zero at the first."""


@dataclass(frozen=True)
class BackboneConfig:
    """The network that computes the features."""

    name: str = "resnet50"
    """Any timm model with ``features_only``, by its name there; ``cspnext_tiny`` and its larger ones (RTMDet's), and
    ``nanodet_plus_m``, the built-in model's with its pyramid."""
    weights: str | None = None
    """Initial weights: a local file with timm's names, ``hub`` for timm's own download, or None for random ones."""
    norm: Literal["frozen", "train"] = "frozen"
    """Batch norm: ``frozen`` keeps statistics and affine parameters fixed, as suits small batches."""
    frozen_stride: Whole = 0
    """Layers up to this stride are frozen (4: the stem and the first stage); 0 trains all."""
    pad_same: bool = False
    """TensorFlow's padding, for weights trained there."""
    stride_in_1x1: bool = False
    """Whether the stride of ResNet stages is in the first 1x1 convolution (Caffe, detectron2's R-50), not the 3x3."""
    vit: PlainVit = field(default_factory=PlainVit)


@dataclass(frozen=True)
class ModelConfig:
    """The base of all model configs; a method adds its own fields and the configs of its parts."""

    num_classes: Count = 80
    """Number of classes, without background."""

    @property
    def backbone_weights(self) -> str | None:
        """Initial weights of the backbone, or None."""
        return None

    def portable(self) -> Self:
        """The same config without paths that are only valid on this machine."""
        return self


@dataclass(frozen=True)
class BackboneModelConfig(ModelConfig):
    """A method whose backbone can be chosen."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)

    @property
    def backbone_weights(self) -> str | None:
        """Initial weights of the backbone, or None."""
        return self.backbone.weights

    def portable(self) -> Self:
        """The same config without the path of the initial weights."""
        return replace(self, backbone=replace(self.backbone, weights=None))


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network's input; stored in every checkpoint."""

    size: tuple[Pixels, Pixels] = (550, 550)
    """Height and width of the network's input in pixels; for ``shorter``, the shorter side and the longest side."""
    resize: Literal["stretch", "pad", "shorter"] = "stretch"
    """``stretch`` resizes to the input and ignores the aspect ratio (YOLACT); ``pad`` keeps the aspect ratio and pads
    on the right and below; ``shorter`` keeps it too, and the input is as large as the image (detectron2,
    torchvision)."""
    antialias: bool = False
    """Whether images are downsized with antialiasing (Pillow's bilinear filter, as in detectron2)."""
    interpolation: Literal["bilinear", "cv2", "cv2_float"] = "bilinear"
    """``cv2`` rounds to bytes as OpenCV's bilinear resize does (mmdetection), ``cv2_float`` is OpenCV's of floats."""
    mean: tuple[Colour, Colour, Colour] = (123.68, 116.78, 103.94)
    """RGB mean on 0..255."""
    std: tuple[Positive, Positive, Positive] = (58.40, 57.12, 57.38)
    """RGB divisor on 0..255."""
    rounding: Literal["nearest", "down", "longer_down"] = "nearest"
    """Of the sides in ``shorter``. ``nearest``: to the nearest pixel (detectron2, mmdetection). ``down``: both down, so
    that 97 x 97 becomes 799 x 799 (torchvision's detectors). ``longer_down``: that of the longer side (its resize)."""
    multiple: Count = 32
    """``shorter`` inputs are padded to multiples of so many pixels; 1 does not pad (mmsegmentation)."""
    padding: Colour | None = None
    """Grey level of the padding on 0..255, 114 in the YOLO family; None: the mean colour."""

    def __post_init__(self) -> None:
        if self.antialias and self.interpolation != "bilinear":
            raise MaskkitError("input.antialias is set, and input.interpolation does not antialias; set one of them")

    @property
    def surround(self) -> tuple[float, float, float]:
        """RGB, on 0..255, of what is around an image in the input."""
        return self.mean if self.padding is None else (self.padding, self.padding, self.padding)


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images, in the order of application; zero or None switches one off."""

    crop: tuple[Pixels, Pixels] | None = None
    """Height and width of a random crop with at least one whole object, for images that are larger than that. For large
    images that are predicted in tiles of this size."""
    copy_paste: Share = 0.0
    """Probability of pasting objects of another training image (Ghiasi et al., 2021)."""
    photometric: bool = True
    """Brightness, contrast, saturation and hue as in SSD."""
    expand: Factor = 4.0
    """Largest factor by which the canvas is enlarged with the mean colour (SSD); 1 switches it off."""
    iou_crop: bool = True
    """Random crop that keeps at least one object by IoU (SSD)."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = 0.0
    """Probability of a vertical flip; useful for microscopy and aerial images."""
    scale_jitter: tuple[Positive, Positive] | None = None
    """Range of a random scale of the resized image, which is cropped or padded back to the input size."""
    short_sides: tuple[Pixels, ...] = ()
    """Lengths of the shorter side, one of which is drawn per image; for ``input.resize`` ``shorter``."""
    canvas: tuple[Pixels, Pixels] | None = None
    """Height and width of the network's input in training where it is not ``input.size``: the resized image is cropped
    or padded to it at random, and ``scale_jitter`` refers to it."""


@dataclass(frozen=True)
class TrainConfig:
    """The optimization: schedule, optimizer, precision, evaluation."""

    epochs: Positive = 12.0
    """Passes over the training images; ``steps`` takes precedence."""
    steps: Count | None = None
    """Optimizer steps of the whole run."""
    minutes: Weight = 0.0
    """Length of the run in minutes, evaluations included, instead of ``epochs``: some steps are timed, and the number
    of steps that fit is fixed. 0: ``epochs`` or ``steps`` count."""
    batch: Whole = 8
    """Images per step, over all processes. 0, or ``auto`` on the command line: as many as fit into memory; the learning
    rate is scaled."""
    repeat: Share = 0.0
    """Images of classes that occur in a smaller share of the images than this are repeated (LVIS: 0.001); 0: none."""
    accumulate: Count = 1
    """Parts of a batch that are computed one after another, so that a step needs the memory of one part. Each part
    counts the same, and its losses are divided by its own objects."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 1e-3
    """Peak learning rate at this ``batch``."""
    backbone_lr: Weight = 1.0
    """Factor on the learning rate of the backbone."""
    freeze: tuple[str, ...] = ()
    """Parts of the model that keep their initial weights and statistics: ``backbone``, or ``backbone fpn``."""
    momentum: Decay = 0.9
    weight_decay: Weight = 5e-4
    decay_norm: bool = True
    """Whether weight decay applies to normalisation layers and biases too."""
    decay_bias: bool = False
    """Whether it applies to biases outside normalisation layers even where ``decay_norm`` is off, as in detectron2."""
    schedule: Literal["steps", "cosine", "poly"] = "cosine"
    """``poly`` is the remaining share of the run to the power of 0.9."""
    milestones: tuple[Share, ...] = (0.35, 0.75, 0.875, 0.9375)
    """Shares of the run after which ``steps`` divides the learning rate by ten."""
    flat: Decay = 0.0
    """Share of the run before ``cosine`` begins to fall (RTMDet: half)."""
    least: Share = 0.0
    """Share of the learning rate at which ``cosine`` ends."""
    warmup: Whole = 500
    """Steps of linear warm-up."""
    warmup_from: Share = 0.1
    """Share of the learning rate at which the warm-up starts."""
    clip: Weight = 0.0
    """Largest gradient norm; 0 switches clipping off."""
    ema: Decay = 0.0
    """Decay of the EMA of the weights, which is evaluated and saved; 0 switches it off."""
    ema_warmup: Weight = 0.0
    """Steps over which the decay of the EMA grows, as ``1 - exp(-steps / ema_warmup)``; 0: it grows within the first
    few, as ``(1 + steps) / (10 + steps)``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass; losses are always fp32."""
    channels_last: bool = True
    compile: bool = False
    workers: Workers = 2
    """Loader processes."""
    seed: Seed = 0
    eval_every: Weight = 1.0
    """Epochs between evaluations. The last step is always evaluated; 0 evaluates only there."""
    patience: Whole = 0
    """Number of evaluations without a new best result after which the training ends early; 0: it never does."""
    save_every: Count = 200
    """Steps between saves of ``last.safetensors``."""
    log: tuple[Tracker, ...] = ()
    """Experiment trackers that get the curves, in addition to ``metrics.jsonl``."""


@dataclass(frozen=True)
class Pretraining:
    """Pre-training of a plain vision transformer on images alone: EVA's recipe, except for model and batch size."""

    student: str = "eva_tiny_patch16_224"
    """The model to train, of timm's EVA family."""
    size: Pixels = 224
    """Image side in pixels."""
    teacher: str = "timm:vit_large_patch14_clip_quickgelu_224.openai"
    """The model whose features are predicted: a timm model (CLIP in the paper); ``random:NAME``: random weights."""
    teacher_weights: str = "hub"
    """A file with timm's names, or ``hub`` for timm's own download."""
    mask: Share = 0.4
    """Share of masked patches."""
    crop: Share = 0.2
    """Smallest share of the image's area in a random crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    epochs: Positive = 150.0
    """Passes over the images; ``steps`` wins where it is set."""
    steps: Count | None = None
    """Optimizer steps of the whole run."""
    batch: Count = 64
    """Images per step over all processes (paper: 4096)."""
    lr: Positive = 1e-3
    """Peak learning rate at this ``batch``; it falls to zero along a cosine."""
    warmup: Whole = 500
    """Steps of linear warm-up from zero, at most a tenth of the run."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: Weight = 0.05
    clip: Weight = 3.0
    """Largest gradient norm."""
    drop_path: Decay = 0.1
    """Stochastic depth rate of the last block; the rate grows linearly from zero at the first."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of student and teacher; the loss is always fp32."""
    workers: Workers = 2
    """Loader processes."""
    seed: Seed = 0
    save_every: Count = 200
    """Steps between saves."""
    log: tuple[Tracker, ...] = ()
    """Experiment trackers that get the curves, beside ``metrics.jsonl``."""


@dataclass(frozen=True)
class DataConfig:
    """The data set, and which of its labels are used."""

    train: str = ""
    """Folder or annotation file."""
    val: str | None = None
    """Folder or annotation file of the validation set; by default found in the folder, or split off."""
    labels: Literal["masks", "boxes", "tags"] = "masks"
    """Labels that the loss uses; evaluation uses all."""
    teacher: str | None = None
    """A model that draws masks in the boxes of objects whose masks are unknown: built-in, or a checkpoint of NanoInst,
    CondInst or BoxInst. Where it is unsure, the object is learnt from its box."""
    saliency: str | None = None
    """Folder of grey images with the names of the training images, bright where something is salient (EPS)."""
    on_bad: Literal["refuse", "skip"] = "refuse"
    """Whether records with errors (``maskkit check``) stop the training or are left out."""
    allow_outside: bool = False
    """Whether images may lie outside of the data set's folder."""
    val_split: Part = 0.2
    """Share of the images split off for validation when there is no validation set."""

    @property
    def supervision(self) -> frozenset[str]:
        """Kinds of labels (keys of `SUPERVISION`) that ``labels`` leaves to the loss."""
        if self.labels == "masks":
            return frozenset(SUPERVISION)
        return frozenset({"boxes", "tags"} if self.labels == "boxes" else {"tags"})


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines the result of a training."""

    preset: str
    model: ModelConfig
    input: InputConfig = field(default_factory=InputConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Tta:
    """Test-time augmentation of a semantic model; the defaults change nothing."""

    scales: tuple[Positive, ...] = (1.0,)
    """Scales of the image, as multiples of ``base``."""
    flip: bool = False
    """Whether to average with the horizontally flipped image."""
    window: tuple[Pixels, Pixels] | None = None
    """Height and width of a sliding window; None: the whole image at once."""
    overlap: Share = 1 / 3
    """Smallest overlap of neighbouring windows, as a share of a window."""
    average: Literal["probabilities", "logits"] = "probabilities"
    """What is averaged: class probabilities, or logits, with windows cut to the image (mmsegmentation)."""
    base: Pixels | None = None
    """Longer side of the image at scale 1, in pixels; by default that of the network's input."""
    crf: bool = False
    """Whether a fully connected CRF refines the result (DeepLab v1 and v2)."""

    @property
    def plain(self) -> bool:
        """Whether nothing is augmented."""
        return self == Tta()


@dataclass(frozen=True)
class PseudoMasks:
    """How the activations of a model trained on image tags become a label map of an image with known tags."""

    scales: tuple[Positive, ...] = (0.5, 1.0, 1.5, 2.0)
    """Scales of the image, each with its horizontal flip, as multiples of ``base``."""
    base: Pixels | None = None
    """Longer side of the image at scale 1, in pixels; by default that of the network's input."""
    threshold: Share = 0.2
    """Score of the background; the best pixel of each class has the score 1."""


_converter = strict_converter()
_converter.register_unstructure_hook_func(  # the fields of the method's own config, not only those of ModelConfig
    lambda kind: kind is ModelConfig, lambda v: {f.name: _converter.unstructure(getattr(v, f.name)) for f in fields(v)}
)


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON types."""
    return json.loads(json.dumps(_converter.unstructure(config)))


def from_dict(data: dict[str, Any], kind: type[T]) -> T:
    """The inverse of `to_dict`. Raises ``ValueError`` for unknown names or wrong types; fields may be missing."""
    try:
        return _converter.structure(data, kind)
    except Exception as error:
        raise ValueError(f"configuration of {kind.__name__} cannot be read: {reasons(error)}") from error
