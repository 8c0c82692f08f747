"""The answers of the service, over real connections."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import maskkit.api
from maskkit.checkpoints.exported import ExportedAs
from maskkit.checkpoints.header import make_header
from maskkit.cli import main
from maskkit.config import InputConfig, ModelConfig, RunConfig, to_dict
from maskkit.decode import LabelMap
from maskkit.geometry import rle
from maskkit.geometry.polygons import to_rle
from maskkit.prediction import Categories
from tests.serve.conftest import Running, png
from tests.serve.fake import CATEGORIES, load


def rows_text(body: str) -> str:
    """The predictions of an answer as the text of a results file: its numbers are kept as they are written."""
    lines = body.splitlines()
    return "[" + ", ".join(line.removesuffix(",") for line in lines[1:-1] if line) + "]"


def written(images: list[bytes], folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """What `maskkit predict` writes for these images."""
    monkeypatch.setattr(maskkit.api, "load", lambda *_: load())
    paths = [folder / f"{n}.png" for n in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    assert main(["predict", *map(str, paths), "--out", str(folder / "found"), *options]) == 0
    return (folder / "found" / "predictions.json").read_text()


def test_rows_are_those_of_predict(service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = png(seed=3)
    for k, (params, options) in enumerate(
        (
            ({}, ()),
            ({"score": 0.1}, ("--score", "0.1")),
            ({"classes": ["disc", CATEGORIES.names[2]]}, ("--classes", "disc", CATEGORIES.names[2])),
            ({"tile": 40, "score": 0.3}, ("--tile", "40", "--score", "0.3")),
        )
    ):
        (folder := tmp_path / str(k)).mkdir()
        expected = written([image], folder, monkeypatch, *options)
        answer = service.predict(image, **params)
        assert answer.status_code == 200, answer.text
        assert rows_text(answer.text) == expected
        found = answer.json()
        assert found["predictions"]
        assert found["image"] == {"id": 1, "width": 64, "height": 48}
        names = dict(zip(CATEGORIES.ids, CATEGORIES.names, strict=True))
        assert found["names"] == [names[row["category_id"]] for row in found["predictions"]]


def test_a_body_may_be_the_image(service: Running) -> None:
    image = png()
    form = service.predict(image)
    for kind in ("image/png", "image/jpeg", "application/octet-stream"):
        raw = service.client.post("/v1/predict", content=image, headers={"Content-Type": kind})
        assert raw.content == form.content


def test_a_batch_is_a_run_of_predict(service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [png(seed=n) for n in range(3)]
    expected = json.loads(written(images, tmp_path, monkeypatch))
    answer = service.client.post("/v1/predict-batch", files=[("image", image) for image in images])
    results = answer.json()["results"]
    assert [row for result in results for row in result["predictions"]] == expected
    broken = service.client.post("/v1/predict-batch", files=[("image", images[0]), ("image", b"no image")]).json()
    assert broken["results"][0] == results[0]
    assert broken["results"][1]["error"]["code"] == "bad_image"
    many = service.client.post("/v1/predict-batch", files=[("image", image) for image in images * 2])
    assert many.status_code in (400, 413)


def test_masks_have_three_forms(service: Running) -> None:
    image = png(seed=1)
    rows, polygons, pngs = (
        service.predict(image, mask=form, score=0).json()["predictions"] for form in ("rle", "polygon", "png")
    )
    assert len(rows) == 6
    for row, polygon, drawn in zip(rows, polygons, pngs, strict=True):
        mask = row["segmentation"]
        assert rle.to_text(to_rle(polygon["segmentation"], (48, 64))) == mask
        pixels = np.asarray(Image.open(BytesIO(base64.b64decode(drawn["segmentation"]["png"]))))
        assert (pixels.astype(bool) == rle.decode([mask], (48, 64))[0]).all()
        assert polygon["bbox"] == drawn["bbox"] == row["bbox"]


def test_the_overlay_is_asked_for_by_accept(service: Running) -> None:
    image = png()
    answer = service.client.post("/v1/predict", content=image, headers={"Accept": "image/png", "Content-Type": ""})
    assert answer.headers["content-type"] == "image/png"
    drawn = Image.open(BytesIO(answer.content))
    assert drawn.size == (64, 48)
    assert (np.asarray(drawn) != np.asarray(Image.open(BytesIO(image)))).any()
    assert service.client.post("/v1/predict", content=image, headers={"Accept": "text/html"}).status_code == 406


def test_what_the_service_says_of_itself(service: Running) -> None:
    model = service.client.get("/v1/model").json()
    assert model["name"] == "fake.onnx"
    assert model["task"] == "instance"
    assert model["classes"] == CATEGORIES.to_coco()
    assert model["score"] == 0.5
    assert model["licence"] == "Apache-2.0"
    assert model["version"] == maskkit.__version__
    assert model["limits"]["bytes"] == 300_000
    for name in model["samples"]:
        assert Image.open(BytesIO(service.client.get(f"/v1/samples/{name}").content)).size[0] > 100
    assert service.client.get("/v1/samples/..%2F..%2Fapi.py").status_code == 404
    assert service.client.get("/healthz").json() == {"status": "ok"}
    assert service.client.get("/readyz").json() == {"status": "ready"}
    service.predict(png())
    metrics = service.client.get("/metrics").text
    assert 'maskkit_requests_total{route="/v1/predict",status="200"}' in metrics
    assert "maskkit_batch_images_bucket" in metrics
    assert "maskkit_ready 1.0" in metrics
    assert "secret" not in metrics
    paths = service.client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/predict", "/v1/predict-batch", "/v1/model", "/healthz", "/readyz", "/metrics"}
    record = next(r for r in reversed(service.records) if r["route"] == "/v1/predict")
    assert record.keys() == {"time", "method", "route", "ms", "status", "in", "out", "images", "found"}
    assert record["images"] == 1
    assert record["found"] == 2 + 1


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} must not be needed")

sys.meta_path.insert(0, Refuse())
import maskkit.cli.serve, maskkit.serve.app
from maskkit.serve.answers import Ask
from maskkit.serve.limits import Limits
from maskkit.serve.worker import Engine
from tests.serve.fake import load

image = sys.stdin.buffer.read()
asks = [Ask(image), Ask(image, mask="polygon"), Ask(image, overlay=True)]
print([answer.status for answer in Engine(load(), Limits()).answers(asks)])
"""


def test_it_serves_without_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH]
    done = subprocess.run(command, input=png(), capture_output=True, cwd=Path(__file__).parents[2], check=False)
    assert done.stdout.decode().strip() == "[200, 200, 200]", done.stderr.decode()


def colours(path: Path) -> Path:
    """An OpenVINO file whose label map is the strongest channel of each pixel."""
    openvino = pytest.importorskip("openvino")
    images = openvino.opset13.parameter([1, 3, 64, 64], np.float32, name="images")
    logits = openvino.opset13.multiply(images, np.full((1, 3, 1, 1), 2, np.float32))
    for node, name in ((images, "images"), (logits, "logits")):
        node.output(0).get_tensor().set_names({name})
    network = openvino.Model([logits], [images], "colours")
    config = RunConfig("colours", ModelConfig(num_classes=3), InputConfig((64, 64), mean=(0, 0, 0), std=(9, 9, 9)))
    header = make_header(config, Categories.of(["red", "green", "blue"]), LabelMap(), {"licence": "MIT"})
    export = ExportedAs("semantic", "openvino", (64, 64), 1, ("images",), ("logits",), {}, "fp32", "0" * 64, {})
    network.set_rt_info(json.dumps(header | {"export": to_dict(export)}), "maskkit")
    openvino.save_model(network, path, compress_to_fp16=False)
    return path


def test_an_openvino_file_is_served(other: Callable[..., Any], tmp_path: Path) -> None:
    """Its answers are those of the file in this process."""
    path, image = colours(tmp_path / "colours.xml"), tmp_path / "a.png"
    image.write_bytes(png(seed=2))
    expected = maskkit.load(path).predict(image).to_coco()
    with other(model=partial(maskkit.load, path)) as service:
        model, answer = service.client.get("/v1/model").json(), service.predict(image.read_bytes())
    assert (model["task"], model["licence"]) == ("semantic", "MIT")
    assert answer.status_code == 200, answer.text
    assert sorted(answer.json()["names"]) == ["blue", "green", "red"]
    assert rows_text(answer.text) == json.dumps(expected)
