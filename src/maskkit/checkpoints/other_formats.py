"""What a weight file that is not read looks like, and what to do with it."""

import stat
from collections.abc import Callable
from pathlib import Path

_EXPORT = (
    "where that framework is installed, save its tensors under the names of the official PyTorch code with "
    "safetensors.torch.save_file, then import that file"
)
_GRAPH = "it is an exported graph whose tensors have lost their names; give the PyTorch weights that it was made from"
_AGAIN = "download it again, with the address of the file itself"

_BY_CONTENT: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (lambda b: b.startswith(b"\x89HDF\r\n\x1a\n"), "HDF5 weights, as Keras writes them", _EXPORT),
    (lambda b: b[4:8] == b"TFL3", "a TensorFlow Lite model", _GRAPH),
    (lambda b: b.startswith(b"GGUF"), "a GGUF file of a language model", "give weights of a segmentation model"),
    (lambda b: b.startswith(b"\x93NUMPY"), "a single NumPy array", "give a file with named tensors"),
    (lambda b: b.startswith(b"version https://git-lfs"), "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (lambda b: b.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")), "a web page", _AGAIN),
    (lambda b: b.startswith(b"<?xml"), "an XML file", "give the file with the weights beside it"),
    (lambda b: b.startswith((b"\xff\xd8\xff", b"\x89PNG")), "an image", "give a file with weights"),
    (lambda b: b.startswith(b"%PDF"), "a PDF", "give a file with weights"),
    (
        lambda b: b.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")),
        "a compressed archive",
        "unpack it and give the file with the weights in it",
    ),
    (lambda b: b[257:262] == b"ustar", "a tar archive", "unpack it and give the file with the weights in it"),
)

_BY_NAME: dict[str, tuple[str, str]] = {
    ".onnx": ("an ONNX graph", _GRAPH),
    ".h5": ("HDF5 weights, as Keras writes them", _EXPORT),
    ".hdf5": ("HDF5 weights, as Keras writes them", _EXPORT),
    ".keras": ("a Keras model", _EXPORT),
    ".tflite": ("a TensorFlow Lite model", _GRAPH),
    ".pb": ("a TensorFlow graph", _GRAPH),
    ".ckpt-index": ("a TensorFlow checkpoint", _EXPORT),
    ".index": ("a TensorFlow checkpoint", _EXPORT),
    ".meta": ("a TensorFlow checkpoint", _EXPORT),
    ".pdparams": ("PaddlePaddle parameters", _EXPORT),
    ".pdiparams": ("an exported PaddlePaddle model", _GRAPH),
    ".caffemodel": ("Caffe weights", _EXPORT),
    ".params": ("MXNet parameters", _EXPORT),
    ".npz": ("NumPy arrays", _EXPORT),
    ".mat": ("a MATLAB file, as MatConvNet has", _EXPORT),
    ".msgpack": ("Flax weights", _EXPORT),
    ".mlmodel": ("a Core ML model", _GRAPH),
    ".engine": ("a TensorRT engine", _GRAPH),
    ".plan": ("a TensorRT engine", _GRAPH),
    ".weights": ("Darknet weights", _EXPORT),
    ".gguf": ("a GGUF file of a language model", "give weights of a segmentation model"),
    ".json": ("a JSON file", "give a file with weights"),
    ".yaml": ("a configuration", "give a file with weights"),
    ".yml": ("a configuration", "give a file with weights"),
    ".py": ("a Python file", "give a file with weights"),
    ".prototxt": ("a network of Caffe without weights", _EXPORT),
}


def other_format(path: Path) -> str | None:
    """One line on a file of another framework: what it looks like and what to do; None where nothing is recognised.

    The content decides before the name. A folder is no file of weights, whatever is in it.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty; download or copy it again"
    for test, looks_like, fix in _BY_CONTENT:
        if test(start):
            return f"it looks like {looks_like}: {fix}"
    suffixes = "".join(path.suffixes[-2:]).lower()
    if ".data-" in path.name:
        suffixes = ".index"
    for ending in (path.suffix.lower(), suffixes):
        if ending in _BY_NAME:
            looks_like, fix = _BY_NAME[ending]
            return f"it looks like {looks_like}: {fix}"
    return None
