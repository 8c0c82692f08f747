"""Predicts with an exported file in a process where torch cannot be imported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CODE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "safetensors", "accelerate", "onnx"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
import json
import maskkit

segmenter = maskkit.load(sys.argv[1])
print(json.dumps([p.to_coco() for p in segmenter.predict_many(sys.argv[2:], score=0.0)]))
"""


def rows_without_torch(path: Path, images: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The result rows of each image."""
    given = [sys.executable, "-c", CODE, str(path), *map(str, images)]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
