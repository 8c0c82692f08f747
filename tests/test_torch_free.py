"""What runs without PyTorch: predictions, decoding, preprocessing, the prediction loop."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

CODE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
import json
import numpy as np
import maskkit, maskkit.api, maskkit.prediction, maskkit.decode
import maskkit.geometry.rle, maskkit.geometry.polygons, maskkit.geometry.resample
import maskkit.infer.preprocess, maskkit.infer.runtimes, maskkit.infer.sources
from maskkit.config import InputConfig
from maskkit.decode import from_dict
from maskkit.infer.predict import Predictor
from maskkit.prediction import Categories

stored = dict(np.load(sys.argv[1]))

class Stored:
    def run(self, images, sizes):
        assert images.shape == (1, 3, 64, 96) and images.dtype == np.float32, images.shape
        assert sizes.tolist() == [[64, 80]], sizes
        return stored

categories = Categories(("disc", "ring"), (7, 9))
decoder = from_dict(json.loads(sys.argv[2]))
predictor = Predictor(Stored(), decoder, InputConfig((64, 80), "shorter"), categories)
(prediction,) = predictor.images([sys.argv[3]], score=0.3)
print(json.dumps(prediction.to_coco()))
"""


def test_a_stored_output_is_decoded_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    import json

    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(image)
    masks = np.zeros((1, 3, 16, 24), np.float32)
    masks[0, 0, 4:8, 4:8] = 1
    masks[0, 1, 8:, :4] = 1
    scores = np.array([[0.9, 0.6, 0.1]], np.float32)
    x, y = 1 / 24, 1 / 16
    boxes = np.array([[[4 * x, 4 * y, 8 * x, 8 * y], [0, 8 * y, 4 * x, 1], [0, 0, 1, 1]]], np.float32)
    labels = np.array([[1, 0, 0]], np.float32)
    np.savez(tmp_path / "stored.npz", boxes=boxes, labels=labels, scores=scores, masks=masks, mask_scores=scores)

    def rows(decoder: str) -> list[dict]:
        given = [str(tmp_path / "stored.npz"), decoder, str(image)]
        done = subprocess.run([sys.executable, "-c", CODE, *given], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    found = rows('{"name": "over_input"}')
    assert [(r["category_id"], round(r["score"], 3)) for r in found] == [(9, 0.9), (7, 0.6)]
    np.testing.assert_allclose(found[0]["bbox"], [8, 8, 8, 8], atol=1e-4)
    np.testing.assert_allclose(found[1]["bbox"], [0, 16, 8, 16], atol=1e-4)
    assert all(r["segmentation"]["size"] == [32, 40] for r in found)
    assert rows('{"name": "boxes_only"}'.replace("boxes_only", "over_input")) == found


def test_a_command_that_takes_torch_says_so(tmp_path: Path) -> None:
    code = CODE.partition("sys.meta_path.insert(0, Refuse())")[0].replace(
        'raise ImportError(f"{name} must not be needed")', "raise ModuleNotFoundError(name, name=name)"
    )
    code += "sys.meta_path.insert(0, Refuse())\nfrom maskkit.cli import main\nsys.exit(main(['predict', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "this takes PyTorch, and torch is not installed; install maskkit in place of maskkit-runtime" in done.stderr
    assert "Traceback" not in done.stderr
