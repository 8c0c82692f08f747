"""What the service refuses, and that it goes on: bad images, limits, a full queue, a process that ends."""

import json
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from maskkit.cli import main
from maskkit.errors import DataError
from maskkit.infer.sources import read_source
from maskkit.serve.limits import Limits
from tests.serve.conftest import Running, png
from tests.serve.fake import FAILS, HANGS, KILLS
from tests.test_cases import CASES


def header_alone(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def sound(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error, which has one form and tells nothing of the server."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert not re.search(r"Traceback|File \"|secret|/home|/work|/tmp|site-packages|Error\b", answer.text)
    return error["message"]


def test_bad_images(service: Running) -> None:
    good = png()
    sound(service.predict(b"no image"), 422, "bad_image")
    sound(service.predict(b""), 422, "empty")
    sound(service.predict(good[:200]), 422, "bad_image")
    sound(service.predict(b"%PDF-1.4"), 422, "bad_image")
    sound(service.predict(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 422, "bad_image")
    sound(service.predict(header_alone(2000, 2000)), 413, "too_many_pixels")
    sound(service.predict(header_alone(60_000, 60_000)), 413, "too_many_pixels")
    sound(service.predict(png((5, 5)) + bytes(300_000)), 413, "too_many_bytes")
    assert service.predict(good).status_code == 200
    files = [("image", image) for image in (b"", good, header_alone(2000, 2000))]
    mixed = service.client.post("/v1/predict-batch", files=files).json()["results"]
    assert [r["error"]["code"] if "error" in r else r["image"]["id"] for r in mixed] == ["empty", 2, "too_many_pixels"]


def damaged(seed: int) -> Iterator[tuple[str, bytes]]:
    """A small image in each format, whole, cut off, and with bytes changed."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "ICO"):
        file = BytesIO()
        image.save(file, kind)
        whole = file.getvalue()
        yield f"{seed}.{kind}", whole
        yield f"{seed} cut.{kind}", whole[: rng.integers(1, len(whole))]
        changed = np.frombuffer(whole, np.uint8).copy()
        changed[rng.integers(0, min(len(whole), 400), 4)] = rng.integers(0, 256, 4)
        yield f"{seed} changed.{kind}", changed.tobytes()


def odd_files() -> Iterator[tuple[str, bytes]]:
    """Odd and hostile files beside the checkout, where they are."""
    for folder in ("odd_pictures", "hostile"):
        for path in sorted(p for p in (CASES / folder).rglob("*") if p.is_file()):
            yield path.name, path.read_bytes()


def pixels(image: bytes) -> float:
    """How many an image says it has; infinite where Pillow refuses them."""
    try:
        return float(np.prod(Image.open(BytesIO(image)).size))
    except Image.DecompressionBombError:
        return np.inf


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
def test_odd_images_are_answered_as_predict_reads_them(service: Running, tmp_path: Path) -> None:
    seen = Counter[int]()
    for name, image in chain(*(damaged(seed) for seed in range(4)), odd_files()):
        status = service.predict(image).status_code
        seen[status] += 1
        if status == 413:  # beyond the limits of the service, which are narrower
            assert len(image) > 300_000 or pixels(image) > 1_000_000, name
            continue
        path = tmp_path / f"image{Path(name).suffix}"
        path.write_bytes(image)
        try:
            read_source(path)
        except DataError:
            assert status == 422, name
        else:
            assert status == 200, name
    assert seen[200] > 40
    assert seen[422] > 10
    assert service.predict(png()).status_code == 200


def test_bad_requests(service: Running) -> None:
    post, image = service.client.post, png()
    sound(post("/v1/predict", json={"image": "file:///etc/passwd"}), 415, "media_type")
    sound(post("/v1/predict", data={"image": "x"}), 415, "media_type")
    sound(post("/v1/predict", content=b""), 422, "empty")
    sound(post("/v1/predict", files={"photo": image}), 422, "unknown_field")
    sound(post("/v1/predict", files=[("image", image)] * 2), 413, "too_many_images")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    sound(post("/v1/predict", content=b"--y\r\nnothing", headers=broken), 400, "bad_form")
    sound(post("/v1/predict", content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400, "bad_form")
    name = ("../../etc/passwd\0", image)
    assert post("/v1/predict", files={"image": name}).status_code == 200  # names of files are not looked at
    for params, code in (
        ({"score": 2}, "invalid"),
        ({"score": "nan"}, "invalid"),
        ({"tile": 1}, "invalid"),
        ({"mask": "dense"}, "invalid"),
        ({"classes": "disk"}, "unknown_class"),
        ({"image_id": -1}, "invalid"),
    ):
        sound(service.predict(image, **params), 422, code)
    sound(service.predict(png((60, 9000), colour=(1, 2, 3)), tile=32), 422, "too_many_tiles")
    sound(service.client.get("/v1/predict"), 405, "http")
    sound(service.client.get("/nothing"), 404, "http")


def test_clients_that_leave_or_talk_nonsense(service: Running) -> None:
    address = service.socket.getsockname()
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    for message in (
        head + b"Content-Length: 100000\r\n\r\nabc",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        head + b"Content-Length: 99999999999999999999999\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
    ):
        with socket.create_connection(address) as client:
            client.sendall(message)
            time.sleep(0.02)
    deadline = time.monotonic() + 5
    while service.queue.held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.queue.held == 0
    assert service.predict(png()).status_code == 200


def test_64_clients(service: Running) -> None:
    images = [png(seed=n) for n in range(8)]
    alone = [service.predict(image).content for image in images]

    def client(number: int) -> list[tuple[int, bool]]:
        with httpx.Client(base_url=service.url, timeout=60, trust_env=False, verify=False) as http:
            answers = []
            for k in range(3):
                n = (number + k) % 8
                answer = http.post("/v1/predict", files={"image": images[n]})
                answers.append((answer.status_code, answer.status_code != 200 or answer.content == alone[n]))
            return answers

    with ThreadPoolExecutor(64) as pool:
        found = [answer for answers in pool.map(client, range(64)) for answer in answers]
    statuses = Counter(status for status, _ in found)
    assert set(statuses) <= {200, 503}
    assert statuses[200] >= 100
    assert all(same for _, same in found)
    assert service.queue.held == 0
    sizes = re.findall(r'maskkit_batch_images_bucket\{le="(\d+)\.0"\} (\d+)', service.client.get("/metrics").text)
    counts = {int(le): int(count) for le, count in sizes}
    assert counts[32] > counts[1]  # images of several requests shared a forward pass


def test_a_full_queue_a_slow_model_and_the_end(other: Callable[..., Any]) -> None:
    with other(Limits(queue=2, batch=1, timeout=0.9), seconds=0.6) as service, ThreadPoolExecutor(4) as pool:
        two = [pool.submit(service.predict, png(seed=n)) for n in range(2)]
        while service.queue.held < 2:
            time.sleep(0.01)
        began = time.monotonic()
        refused = service.predict(png())
        assert time.monotonic() - began < 0.5
        sound(refused, 503, "busy")
        assert refused.headers["retry-after"] == "1"
        codes = sorted(answer.result().status_code for answer in two)
        assert codes == [200, 503]  # the second one took longer than its time
        sound(next(a.result() for a in two if a.result().status_code == 503), 503, "timeout")
        # a body that never ends
        with socket.create_connection(service.socket.getsockname()) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        # the service stops when all accepted requests are answered
        last = pool.submit(service.predict, png())
        while not service.queue.held:
            time.sleep(0.01)
        service.server.should_exit = True
        assert last.result().status_code == 200


def ends(service: Running, colour: tuple[int, int, int], code: str) -> None:
    """An image ends the process of the model, and another one takes over."""
    sound(service.predict(png(colour=colour)), 503, code)
    deadline = time.monotonic() + 60
    while (answer := service.predict(png())).status_code == 503 and time.monotonic() < deadline:
        assert answer.json()["error"]["code"] in ("not_ready", "timeout", "worker_ended")
        time.sleep(0.1)
    assert answer.status_code == 200


def bug() -> None:
    raise RuntimeError("a secret of the server")


def test_the_process_of_the_model_may_fail(other: Callable[..., Any]) -> None:
    with other(
        Limits(timeout=2, batch=8, wait=50), token="a token of a service", cors=["https://example.org"]
    ) as service:
        sound(service.predict(png()), 401, "unauthorised")
        service.client.headers["Authorization"] = "Bearer a token of a servicf"
        assert service.predict(png()).headers["www-authenticate"] == "Bearer"
        sound(service.client.get("/metrics"), 401, "unauthorised")
        for origin, allowed in (("https://example.org", "https://example.org"), ("https://example.com", None)):
            answer = service.client.get("/healthz", headers={"Origin": origin})
            assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (200, allowed)
        service.client.headers["Authorization"] = "Bearer a token of a service"
        with ThreadPoolExecutor(2) as pool:  # one image of a batch fails, not the other
            both = [pool.submit(service.predict, png(colour=FAILS)), pool.submit(service.predict, png())]
            sound(both[0].result(), 500, "internal")
            assert both[1].result().status_code == 200
        service.app.add_api_route("/bug", bug)
        failed = service.client.get("/bug")
        sound(failed, 500, "internal")
        assert failed.headers["x-content-type-options"] == "nosniff"
        ends(service, KILLS, "worker_ended")
        assert "maskkit_worker_restarts_total 1.0" in service.client.get("/metrics").text
        assert [record["status"] for record in service.records if record["route"] == "/bug"] == [500]
        assert json.dumps(service.records).count("secret") == 0


@pytest.mark.slow
def test_a_model_that_hangs_is_replaced(other: Callable[..., Any]) -> None:
    with other(Limits(timeout=2)) as service:
        ends(service, HANGS, "timeout")


def test_other_origins_read_nothing_unless_named(service: Running) -> None:
    origin = {"Origin": "https://example.org"}
    assert "access-control-allow-origin" not in service.client.get("/v1/model", headers=origin).headers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nowhere.onnx"), "nowhere.onnx: there is no such file"),
        (("--token-file", "short.txt"), "short.txt: a token has at least 16"),
        (("--host", "256.1.1.1"), "--host 256.1.1.1"),
    ],
)
def test_a_service_that_cannot_start_says_why(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("secret\n")
    assert main(["serve", "--port", "0", *options]) == 1
    assert message in capsys.readouterr().err
