"""The same network in another library and here, with the same weights: what `peers.py` compares.

A `Pair` knows how each side goes from the pixels of one image to its result, how it makes a training step, and what its
exporter takes. Everything else (turns, processes, tables) is in `peers.py`.
"""

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection, segmentation

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.checkpoints.checkpoint import Checkpoint
from maskkit.checkpoints.listing import one_line
from maskkit.config import RunConfig
from maskkit.data.shapes import draw
from maskkit.export.write import ExportConfig, export
from maskkit.infer.predict import Predictor
from maskkit.infer.runtimes import Runtime
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.models.base import Model, to_arrays
from maskkit.nn.winograd import use_winograd
from maskkit.prediction import Categories, ImageMeta, Prediction
from maskkit.targets import Batch, Target, full_sizes

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
OURS = "maskkit"
BATCH = 2
"""Images of a training step."""


class Pair(ABC):
    """Two networks with the same weights, and one image."""

    library: ClassVar[str]
    size: tuple[int, int]
    """(Height, width) of the image for inference."""
    train_size: tuple[int, int] = (480, 640)

    def __init__(self, preset: str) -> None:
        torch.manual_seed(0)
        self.preset = zoo.preset(preset)
        self.theirs: Any = self.build().eval()
        self.ours: Any = zoo.model_class(preset)(self.preset.model).eval()  # type: ignore[call-arg]
        self.ours.load_state_dict(published.convert(self.theirs.state_dict(), preset))
        self.ours.to(memory_format=torch.channels_last)
        self.names = Categories.of([f"class {i}" for i in range(self.preset.model.num_classes)])
        image = draw(0, self.size, (6, 10))[0]
        self.pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())

    # inference -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> Any:
        """The other library's network, with seeded weights that keep activations in range and scores distinct."""

    @abstractmethod
    def given(self) -> tuple:
        """What the other network is called with: the image, as its users prepare it."""

    @abstractmethod
    def end(self, outputs: Any) -> np.ndarray:
        """Their result: dense masks, boxes or a label map, from the outputs of their network or of its ONNX file."""

    @abstractmethod
    def ours_end(self, prediction: Prediction) -> np.ndarray:
        """The same of ours."""

    def their_call(self, network: Callable | None = None) -> Callable[[], np.ndarray]:
        """A call of the other network, or of another form of it, from pixels to the result."""
        run: Callable = network or self.theirs

        @torch.inference_mode()
        def call() -> np.ndarray:
            return self.end(run(*self.given()))

        return call

    def our_call(self, runtime: Runtime | None = None) -> Callable[[], np.ndarray]:
        """A call of our predictor, from pixels to the result."""
        runtime = runtime or TorchRuntime(self.ours, "cpu", fold=True)
        input = replace(self.preset.input, size=self.size, resize="pad")
        predictor = Predictor(runtime, self.ours.decoder, input, self.names)
        return lambda: self.ours_end(next(predictor.images([self.pixels])))

    # files -----------------------------------------------------------------------------------------------------------

    def our_file(self, path: Path) -> Path:
        """Our network in an ``.onnx`` or ``.xml`` file."""
        config = RunConfig(self.preset.name, self.preset.model, self.preset.input)
        export(Checkpoint(self.ours, config, self.names, {}), path, ExportConfig(size=self.size), force=True)
        return path

    def their_file(self, path: Path) -> Path:
        """Their network in an ONNX file, by PyTorch's newer exporter, or else by its older one."""
        errors = []
        for dynamo in (True, False):
            try:
                with torch.no_grad():
                    torch.onnx.export(self.theirs, self.given(), str(path), dynamo=dynamo)
            except Exception as error:  # a dozen kinds
                errors.append(
                    f"{'dynamo' if dynamo else 'TorchScript'} {type(error).__name__}: {one_line(error)[:120]}"
                )
            else:
                return path
        raise RuntimeError("; ".join(errors))

    # training --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def their_loss(self, plain: list[Tensor], targets: list[Target]) -> Callable[[], Tensor]:
        """A call that gives the summed loss of images on 0..1."""

    @abstractmethod
    def body(self) -> nn.Module:
        """The backbone of the other network."""

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the method's recipe."""
        return torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)

    def steps(self) -> dict[str, Callable[[], float]]:
        """Calls that make a step of `BATCH` images and give its loss. Our config says what is frozen on both sides."""
        drawn = [draw(seed, self.train_size, (6, 10)) for seed in range(BATCH)]
        plain, targets = [image / 255 for image, _ in drawn], [with_label_map(target) for _, target in drawn]
        images = torch.stack([(image - MEAN) / STD for image in plain]).contiguous(memory_format=torch.channels_last)
        metas = [ImageMeta(i, "", self.train_size, self.train_size) for i in range(BATCH)]
        batch = Batch(images, full_sizes(images), targets, metas)
        self.theirs.train()
        use_winograd(self.ours.train(), learns=True)  # as `maskkit train` does
        backbone = self.ours.backbone
        freeze(self.body(), self.preset.model.backbone.frozen_stride)  # type: ignore[attr-defined]
        counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (self.body(), backbone)]
        assert counts[0] == counts[1], f"{self.library} learns {counts[0]} weights of its backbone, we {counts[1]}"

        def our_loss() -> Tensor:
            terms = self.ours.loss(self.ours(images, None, targets), batch)
            return torch.stack(list(terms.values())).sum()

        return {
            self.library: step(self.optimizer(self.theirs), self.their_loss(plain, targets)),
            OURS: step(self.optimizer(self.ours), our_loss),
        }

    def keep(self, side: str) -> None:
        """Forget the other side, whose memory is not measured."""
        if side == OURS:
            self.theirs = None
        else:
            self.ours = None
        gc.collect()


def step(optimizer: torch.optim.Optimizer, losses: Callable[[], Tensor]) -> Callable[[], float]:
    """A call that makes a training step and gives its loss."""

    def call() -> float:
        total = losses()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return call


def freeze(body: nn.Module, stride: int) -> None:
    """Freeze batch norm, and the stem and first stage of a torchvision ResNet for a ``stride`` of 4."""
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    if stride == 4:
        for name in ("conv1", "layer1"):
            body.get_submodule(name).requires_grad_(False)


def with_label_map(target: Target) -> Target:
    """The target with a label map beside its masks: its classes, from 1, on background."""
    assert target.masks is not None
    dense = target.masks.dense()
    shown = (dense * (target.labels + 1)[:, None, None]).amax(0).to(torch.uint8)
    return replace(target, semantic=shown)


class OfTorchvision(Pair):
    """A network of torchvision; ``network`` makes it."""

    library = "torchvision"

    def __init__(self, preset: str, network: Callable[..., Any]) -> None:
        self.network = network
        super().__init__(preset)

    def random(self, **options: Any) -> Any:
        """The network with random weights, whose blocks add little, so that its features keep their scale."""
        found: Any = self.network(weights=None, weights_backbone=None, **options)
        with torch.no_grad():
            for name, tensor in found.state_dict().items():
                if name.endswith("bn3.weight"):
                    tensor.fill_(0.2)
        return found


class Detector(OfTorchvision):
    """A detector of torchvision."""

    size = (800, 1088)

    def build(self) -> Any:
        """Two-stage detectors find 100 objects with these weights, FCOS with outputs that are spread on the image."""
        found = self.random()
        with torch.no_grad():
            for name, tensor in found.state_dict().items():
                if name.endswith("rpn.head.cls_logits.weight"):
                    tensor.normal_(std=0.05)
                elif name.endswith("cls_score.weight"):
                    tensor.normal_()
                elif name.endswith("box_predictor.bbox_pred.weight"):
                    tensor.normal_(std=0.0005)
        self.resize(found, self.size)
        if isinstance(found, detection.FCOS):
            image = draw(0, self.size, (6, 10))[0] / 255
            spread(found.eval(), image, "head.regression_head.bbox_reg", 0.5, 2.0)
            spread(found, image, "head.regression_head.bbox_ctrness", 1.0)
            spread(found, image, "head.classification_head.cls_logits", 1.0, -2.0)
            with torch.no_grad():
                found.get_parameter("head.classification_head.cls_logits.bias")[0] = -100.0  # background
        return found

    @staticmethod
    def resize(network: Any, size: tuple[int, int]) -> None:
        """Make the transform leave images of ``size`` unchanged."""
        network.transform.min_size, network.transform.max_size = (size[0],), size[1]

    def given(self) -> tuple:
        """A list of images on 0..1; the network normalises them."""
        return ([torch.from_numpy(self.pixels).permute(2, 0, 1) / 255],)

    def end(self, outputs: Any) -> np.ndarray:
        """Dense masks where the method has them, else boxes. A file gives boxes, labels, scores and masks in turn."""
        if isinstance(outputs, list) and not isinstance(outputs[0], dict):
            masks = next((np.asarray(o) for o in outputs if np.ndim(o) == 4), None)
            return masks[:, 0] > 0.5 if masks is not None else next(np.asarray(o) for o in outputs if np.ndim(o) == 2)
        found = outputs[0]
        return (found["masks"][:, 0] > 0.5).numpy() if "masks" in found else found["boxes"].numpy()

    def ours_end(self, prediction: Prediction) -> np.ndarray:
        """Dense masks where the method has them, else boxes."""
        assert prediction.instances is not None
        masks = prediction.instances.masks
        return masks.dense() if masks is not None else prediction.instances.boxes

    def body(self) -> nn.Module:
        """The ResNet below the pyramid."""
        return self.theirs.backbone.body

    def their_loss(self, plain: list[Tensor], targets: list[Target]) -> Callable[[], Tensor]:
        """The sum of its dictionary of losses."""
        self.resize(self.theirs, self.train_size)
        truth = []
        for target in targets:
            assert target.masks is not None
            truth.append({"boxes": target.boxes, "labels": target.labels + 1, "masks": target.masks.dense().byte()})
        return lambda: torch.stack(list(self.theirs(plain, truth).values())).sum()


@torch.no_grad()
def spread(network: Any, image: Tensor, layer: str, std: float, mean: float = 0.0) -> None:
    """Give each output of a layer this deviation and mean on the image, so that boxes and scores differ."""
    module = network.get_submodule(layer)
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda *call: outputs.append(call[2].transpose(0, 1).flatten(1)))
    network([image])
    hook.remove()
    values = torch.cat(outputs, 1)
    factor = std / values.std(1)
    module.weight.mul_(factor.view(-1, 1, 1, 1))
    module.bias.copy_((module.bias - values.mean(1)) * factor + mean)


class LabelMaps(OfTorchvision):
    """A semantic network of torchvision."""

    size = (520, 696)

    def build(self) -> Any:
        """Random weights, with the auxiliary head of the published ones."""
        return self.random(num_classes=21, aux_loss=True)

    def given(self) -> tuple:
        """The normalised image."""
        return (((torch.from_numpy(self.pixels).permute(2, 0, 1) / 255 - MEAN) / STD)[None],)

    def end(self, outputs: Any) -> np.ndarray:
        """The best class of each pixel."""
        logits = outputs["out"] if isinstance(outputs, dict) else torch.from_numpy(outputs[0])
        return logits[0].argmax(0).numpy().astype(np.uint8)

    def ours_end(self, prediction: Prediction) -> np.ndarray:
        """The best class of each pixel."""
        assert prediction.semantic is not None
        return prediction.semantic

    def body(self) -> nn.Module:
        """The dilated ResNet."""
        return self.theirs.backbone

    def their_loss(self, plain: list[Tensor], targets: list[Target]) -> Callable[[], Tensor]:
        """Cross entropy, half of it for the auxiliary head, as in torchvision's reference."""
        images = torch.stack([(image - MEAN) / STD for image in plain])
        truth = torch.stack([t.semantic for t in targets if t.semantic is not None]).long()

        def call() -> Tensor:
            found = self.theirs(images)
            return F.cross_entropy(found["out"], truth, ignore_index=255) + 0.5 * F.cross_entropy(
                found["aux"], truth, ignore_index=255
            )

        return call


class Queries(Pair):
    """Mask2Former of transformers. Both sides end with class logits and mask logits at a quarter of the input."""

    library = "transformers"
    size = (640, 640)
    train_size = (448, 448)

    def build(self) -> Any:
        """With random offsets and attention too."""
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

        kind = SwinConfig if "swin" in self.preset.name else ResNetConfig
        backbone = kind(out_features=[f"stage{i}" for i in range(1, 5)])  # type: ignore[call-arg]
        found: Any = Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(backbone_config=backbone, num_labels=80)  # type: ignore[call-arg]
        )
        for name, parameter in found.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                nn.init.normal_(parameter, std=0.02)
            if "encoder.layernorm." in name or "swin.layernorm." in name:  # which it never reads
                parameter.requires_grad_(False)
        return found

    def given(self) -> tuple:
        """The normalised image."""
        return (((torch.from_numpy(self.pixels).permute(2, 0, 1) / 255 - MEAN) / STD)[None],)

    def end(self, outputs: Any) -> np.ndarray:
        """Mask logits."""
        if isinstance(outputs, list):
            return next(o for o in outputs if np.ndim(o) == 4)
        return outputs.masks_queries_logits.numpy()

    def ours_end(self, prediction: Prediction) -> np.ndarray:
        """Not used: the decoder goes on where theirs ends."""
        raise NotImplementedError

    def our_call(self, runtime: Runtime | None = None) -> Callable[[], np.ndarray]:
        """`forward` and `select`, which also takes the best pairs of query and class."""
        runtime = runtime or TorchRuntime(self.ours, "cpu", fold=True)
        return lambda: runtime.run(self.given()[0].numpy(), np.array([self.size]))["masks"]

    def body(self) -> nn.Module:
        """Its ResNet or Swin."""
        return self.theirs.model.pixel_level_module.encoder

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)

    def their_loss(self, plain: list[Tensor], targets: list[Target]) -> Callable[[], Tensor]:
        """Its own loss."""
        images = torch.stack([(image - MEAN) / STD for image in plain])
        masks = [t.masks.dense().float() for t in targets if t.masks is not None]
        labels = [t.labels for t in targets]
        return lambda: self.theirs(images, mask_labels=masks, class_labels=labels).loss


PAIRS: dict[str, Callable[[], Pair]] = {
    "mask-rcnn": partial(Detector, "maskrcnn-resnet50", detection.maskrcnn_resnet50_fpn),
    "faster-rcnn": partial(Detector, "fasterrcnn-resnet50", detection.fasterrcnn_resnet50_fpn),
    "fcos": partial(Detector, "fcos-resnet50-torchvision", detection.fcos_resnet50_fpn),
    "deeplab": partial(LabelMaps, "deeplabv3-resnet50-coco", segmentation.deeplabv3_resnet50),
    "fcn": partial(LabelMaps, "fcn-resnet50-coco", segmentation.fcn_resnet50),
    "mask2former-r50": partial(Queries, "mask2former-resnet50"),
    "mask2former-swin-t": partial(Queries, "mask2former-swin-t"),
}


class Compiled:
    """Our network compiled by `torch.compile`: `forward` and `select` in one."""

    def __init__(self, model: Model) -> None:
        self.eager = TorchRuntime(model, "cpu", fold=True)
        self.whole: Callable | None = None

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """See `maskkit.infer.runtimes.Runtime.run`."""
        tensors = self.eager.to_tensor(images)
        with self.eager.evaluating(tensors) as model:
            if self.whole is None:
                self.whole = torch.compile(lambda x, s: model.select(model(x, s)))
            return to_arrays(self.whole(tensors, torch.from_numpy(sizes)))


def agreement(one: np.ndarray, other: np.ndarray) -> str:
    """How far two results are apart, in words."""
    if one.shape != other.shape:
        return f"results of {one.shape} and {other.shape}"
    if one.ndim == 2 and one.dtype != np.uint8:  # boxes: equal scores may be in another order
        return f"boxes at most {np.abs(one[:, None] - other).max(2).min(1).max():.1g} from the nearest"
    if one.dtype in (bool, np.uint8):
        return f"{100 * float((one == other).mean()):.3f} % of the pixels equal"
    return f"at most {np.abs(one - other).max():.1g} apart"


def in_onnx_runtime(path: Path, threads: int) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """A call that runs any ONNX file with its inputs in order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(arrays: Sequence[np.ndarray]) -> list[Any]:
        return list(session.run(None, dict(zip(names, arrays, strict=True))))

    return call


def in_openvino(path: Path, threads: int) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """The same in OpenVINO, in fp32."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found: Any = request.infer(list(arrays))
        return [np.array(found[output]) for output in compiled.outputs]

    return call
