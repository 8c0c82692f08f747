"""The interface of everything that runs a network, and the runtimes of exported files. No torch.

A `Runtime` takes normalised images and gives the decoder's arrays. `OnnxRuntime` and `OpenVinoRuntime` run files that
`maskkit export` wrote; each file describes itself in its metadata (`maskkit.checkpoints.exported`).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from maskkit.checkpoints.exported import exported_as, read_description
from maskkit.checkpoints.listing import one_line
from maskkit.errors import DataError, MaskkitError
from maskkit.files import require_file


class Runtime(Protocol):
    """A network with its weights on a device, e.g. `maskkit.infer.torch_runtime.TorchRuntime`."""

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """The fields of the decoder's outputs (`maskkit.decode.outputs`), float32, each with a leading batch axis.

        ``images`` are normalised, in any memory order; ``sizes`` are the (height, width) of each inside its padding.
        """
        ...


STREAMS = 4
"""Most forward passes at the same time: each takes the memory of its own layers."""


def split(cores: int) -> tuple[int, int]:
    """How many forward passes to run at the same time on so many ``cores``, for many images, and the threads of each.

    One thread per image keeps a core busy all the time; several wait for each other at every layer.
    """
    streams = min(cores, STREAMS)
    return streams, cores // streams


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FileRuntime(ABC):
    """What the runtimes of exported files share: batches of the size that the file has, and the names of outputs."""

    def __init__(self, path: Path, text: str | None) -> None:
        """``text`` is the description in the file's metadata. Raises `DataError` for a file without one."""
        self.path = path
        self.description = read_description(path, text)
        self.exported = exported_as(self.description, path)

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """See `Runtime.run`. Raises `MaskkitError` for images of a size that the file does not take, and where it
        fails."""
        if self.exported.size not in (None, images.shape[2:]):
            height, width = self.exported.size
            raise MaskkitError(
                f"{self.path}: takes inputs of {height} x {width} (height x width), not {images.shape[2]} x "
                f"{images.shape[3]}; export with --size, or with --dynamic size"
            )
        count = self.exported.batch or len(images)
        parts = [self._part(images[i : i + count], sizes[i : i + count], count) for i in range(0, len(images), count)]
        found = {name: np.concatenate([part[name] for part in parts]) for name in self.exported.outputs}
        return found | {name: found[first] for name, first in self.exported.same.items()}

    def _part(self, images: np.ndarray, sizes: np.ndarray, count: int) -> dict[str, np.ndarray]:
        """The outputs for at most ``count`` images; a file of a fixed batch gets copies of the last one."""
        real = len(images)
        if real < count:
            index = np.minimum(np.arange(count), real - 1)
            images, sizes = images[index], sizes[index]
        given = {"images": np.ascontiguousarray(images), "sizes": np.ascontiguousarray(sizes, np.int64)}
        try:
            arrays = self._infer({name: given[name] for name in self.exported.inputs})
        except MaskkitError:
            raise
        except Exception as error:  # every runtime has its own
            raise MaskkitError(
                f"{self.path}: fails for {count} images of {images.shape[2]} x {images.shape[3]} ({one_line(error)})"
            ) from None
        return {n: np.asarray(a, np.float32)[:real] for n, a in zip(self.exported.outputs, arrays, strict=True)}

    @abstractmethod
    def _infer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the order of ``exported.outputs``."""


class OnnxRuntime(FileRuntime):
    """An ONNX file in ONNX Runtime.

    ``device`` None or ``cpu`` runs on the processor, ``cuda`` on an NVIDIA GPU (package onnxruntime-gpu). ``threads``
    None uses all cores. `run` may be called from several threads.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        ort = require("onnxruntime", "export")
        path = Path(path)
        require_file(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3  # warnings are about the graph's insides
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        if device not in (None, "cpu"):
            providers.insert(0, "CUDAExecutionProvider")
            if device != "cuda" or providers[0] not in ort.get_available_providers():
                raise MaskkitError(
                    f"{device}: this ONNX Runtime has {', '.join(ort.get_available_providers())}; leave the device "
                    "out, or install onnxruntime-gpu and name cuda"
                )
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # pybind raises RuntimeError and a dozen other kinds
            if (data := path.with_suffix(".data")).name in str(error) and not data.is_file():
                raise DataError(f"{path}: its weights are missing: {data}; copy both files") from None
            raise DataError(f"{path}: ONNX Runtime cannot open it ({one_line(error)}); export it again") from None
        super().__init__(path, self._session.get_modelmeta().custom_metadata_map.get("maskkit"))

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(list(self.exported.outputs), dict(feeds))


PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""OpenVINO's name for the precision of what is not quantised."""


class OpenVinoRuntime(FileRuntime):
    """An OpenVINO file (``.xml`` with its ``.bin``).

    Runs in the precision that the file was exported for; without this, OpenVINO takes bfloat16 on processors that have
    it, and gives other masks there. ``device`` is OpenVINO's name, ``CPU`` by default.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        openvino = require("openvino", "openvino")
        path = Path(path)
        require_file(path)
        core = openvino.Core()
        if not path.with_suffix(".bin").is_file():
            raise DataError(f"{path}: its weights are missing: {path.with_suffix('.bin')}; copy both files")
        try:
            model = core.read_model(os.fspath(path))
        except RuntimeError as error:
            raise DataError(f"{path}: OpenVINO cannot open it ({one_line(error)}); export it again") from None
        text = str(model.get_rt_info("maskkit").value) if model.has_rt_info("maskkit") else None
        super().__init__(path, text)
        precision = PRECISIONS[self.exported.precision]
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = core.compile_model(model, (device or "CPU").upper(), config)
        except RuntimeError as error:
            raise MaskkitError(
                f"{path}: OpenVINO cannot run it on {device or 'CPU'} ({one_line(error)}); it has "
                f"{', '.join(core.available_devices)}"
            ) from None
        self._request = compiled.create_infer_request()

    def _infer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = self._request.infer(dict(feeds))
        return [found[name].copy() for name in self.exported.outputs]


FILES: dict[str, Callable[[Path, str | None, int | None], FileRuntime]] = {
    ".onnx": OnnxRuntime,
    ".xml": OpenVinoRuntime,
}
"""The runtime of each kind of exported file that needs no torch, by suffix, for a path, a device and threads."""


def require(module: str, extra: str) -> Any:
    """The module, imported. Raises `MaskkitError` with the command that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MaskkitError(f"{module} is not installed ({error}); pip install 'maskkit[{extra}]'") from None
