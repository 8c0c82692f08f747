"""A PyTorch model as a `Runtime`, with or without test-time augmentation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskkit.checkpoints.listing import one_line
from maskkit.config import InputConfig, Tta
from maskkit.decode import LabelMap
from maskkit.decode.outputs import ClassLogits
from maskkit.errors import DataError, MaskkitError
from maskkit.files import require_file
from maskkit.infer.predict import Predictor
from maskkit.infer.runtimes import FileRuntime
from maskkit.infer.tta import probabilities
from maskkit.models.base import Model, to_arrays
from maskkit.nn.backbones.backbone import fold_batch_norm
from maskkit.nn.winograd import profits, use_winograd
from maskkit.prediction import Categories


class TorchRuntime:
    """Runs ``model`` unchanged on its own device, in evaluation mode, and restores its mode afterwards.

    With ``device`` or ``fold`` it runs a copy on that device; with ``fold`` the batch norm is folded into the
    convolutions, and on a CPU `maskkit.nn.winograd` computes them, for speed. The model itself is never changed and can
    be trained further; when its weights change, the copy is updated.
    """

    def __init__(self, model: Model, device: torch.device | str | None = None, fold: bool = False) -> None:
        self.model = model
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self._fold = fold and any(isinstance(m, nn.BatchNorm2d) or profits(m) for m in model.modules())
        self._copy: Model | None = None
        self._copied: list[int] = []
        self._copying = Lock()

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """What `Model.select` returns for normalised images, as float32 arrays."""
        tensors = self.to_tensor(images)
        with self.evaluating(tensors) as model:
            return to_arrays(model.select(model(tensors, torch.from_numpy(sizes).to(self.device))))

    def to_tensor(self, images: Float[np.ndarray, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images on the device, channels last."""
        return torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def evaluating(self, images: Float[Tensor, "b 3 h w"]) -> Iterator[Model]:
        """The network for such ``images``, in evaluation and inference mode inside."""
        model = self._network(images)
        with evaluating(model), torch.inference_mode():
            yield model

    def _network(self, images: Float[Tensor, "b 3 h w"]) -> Model:
        if not self._fold and self.device == next(self.model.parameters()).device:
            return self.model
        with self._copying:  # several threads may run it
            now = [t._version for t in chain(self.model.parameters(), self.model.buffers())]
            copy = self._copy
            if copy is None or now != self._copied:
                copy = _sharing(self.model)
                copy.to(self.device, memory_format=torch.channels_last)
                if self._fold:
                    fold_batch_norm(copy, torch.zeros_like(images[:1]))
                    use_winograd(copy)
                self._copy, self._copied = copy.eval(), now
            return copy


def _sharing(model: Model) -> Any:
    """A copy of ``model`` whose weights lie where those of ``model`` do, until they are replaced or moved."""
    weights = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return deepcopy(model, weights | {id(b): b.detach() for b in model.buffers()})


class PackageRuntime(FileRuntime):
    """A ``.pt2`` package, compiled ahead of time by AOTInductor for the kind of machine that exported it."""

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        path = Path(path)
        require_file(path)
        if device not in (None, "cpu"):
            raise MaskkitError(f"{path}: was compiled for the CPU; it does not run on {device}")
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self._package: Any = torch._inductor.aoti_load_package(str(path))
            text = self._package.get_metadata().get("maskkit")
        except Exception as error:  # of the loader of shared libraries, of zip, of torch
            raise DataError(f"{path}: cannot be loaded ({one_line(error)}); export it here") from None
        super().__init__(path, text)

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = self._package(*(torch.from_numpy(feeds[name]) for name in self.exported.inputs))
        return [found[name].float().numpy() for name in self.exported.outputs]


class TtaRuntime:
    """A runtime whose logits are class probabilities averaged by test-time augmentation."""

    def __init__(self, runtime: TorchRuntime, input: InputConfig, tta: Tta) -> None:
        self.runtime = runtime
        self.input = input
        self.tta = tta

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """The mean probabilities, as the logits of `maskkit.decode.outputs.ClassLogits`."""
        tensors = self.runtime.to_tensor(images)
        with self.runtime.evaluating(tensors) as model:
            mean = probabilities(lambda x: _logits(model, x), tensors, self.tta, self.input)
            return to_arrays(ClassLogits(mean))


def _logits(model: Model, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k _ _"]:
    """Class logits; at the size of ``images`` where corners lie on corners, as the decoder says."""
    logits, decoder = model.select(model(images)).logits, model.decoder
    if isinstance(decoder, LabelMap) and decoder.align_corners:
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=True)
    return logits


def predictor(
    model: Model,
    input: InputConfig,
    categories: Categories,
    device: torch.device | str | None = None,
    fold: bool = False,
) -> Predictor:
    """A predictor of ``model``; see `TorchRuntime` for ``device`` and ``fold``."""
    return Predictor(TorchRuntime(model, device, fold), model.decoder, input, categories)


def with_tta(predictor: Predictor, tta: Tta) -> Predictor:
    """The same predictor with test-time augmentation. Raises `MaskkitError` for a model without class logits."""
    runtime = predictor.runtime
    if predictor.decoder.outputs is not ClassLogits or not isinstance(runtime, TorchRuntime):
        raise MaskkitError(
            "test-time augmentation is for semantic models; this one has no class probabilities per pixel"
        )
    return predictor if tta.plain else replace(predictor, runtime=TtaRuntime(runtime, predictor.input, tta))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; the previous mode is restored."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def best_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def find_device(name: torch.device | str | None) -> torch.device:
    """The device called ``name``: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None or ``auto`` is `best_device`.

    Raises `MaskkitError`, with the devices that there are, for a name that is none or a device that this machine or
    this PyTorch does not have.
    """
    if name is None or str(name) == "auto":
        return best_device()
    there = _devices()
    try:
        wanted = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise MaskkitError(f"there is no device {name!r}; this machine has: {', '.join(there)}") from None
    plain = torch.device(wanted.type, wanted.index or 0) if wanted.type != "cpu" else torch.device("cpu")
    if str(plain) not in there or (wanted.type == "cpu" and wanted.index):
        why = ", and this PyTorch is built without CUDA" if wanted.type == "cuda" and not torch.version.cuda else ""
        raise MaskkitError(f"device {str(wanted)!r} is not there{why}; this machine has: {', '.join(there)}")
    return plain


def _devices() -> list[str]:
    """The names of the devices that can be used, the CPU last."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if found is not None else 0
    return [f"{found.type}:{i}" for i in range(count) if found is not None] + ["cpu"]
