"""Converts an ONNX file for OpenVINO, in a separate process, so that a crash of the converter is an error message."""

import json
import subprocess
import sys
from pathlib import Path

from maskkit.errors import MaskkitError

_CODE = """
import json, sys
import openvino

source, target, text, half = sys.argv[1], sys.argv[2], sys.stdin.read(), sys.argv[3] == "half"
model = openvino.convert_model(source)
model.set_rt_info(text, "maskkit")
openvino.save_model(model, target, compress_to_fp16=half)
openvino.Core().compile_model(target, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
"""


def to_openvino(onnx: Path, xml: Path, description: dict, half: bool = False) -> None:
    """Write ``xml`` and its ``.bin`` from the ONNX file, with the description as run-time information ``maskkit``.

    ``half`` stores weights in 16 bits. Raises `MaskkitError` if OpenVINO cannot convert or compile the graph.
    """
    given = [sys.executable, "-c", _CODE, str(onnx), str(xml), "half" if half else "full"]
    done = subprocess.run(given, input=json.dumps(description), capture_output=True, text=True)
    if done.returncode:
        raise MaskkitError(f"OpenVINO cannot take this model: {_reason(done)}; export it as .onnx")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if "DeformConv" in done.stderr:
        return "it has no deformable convolution"
    if done.returncode < 0:
        return f"its converter died of signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {done.returncode}"
