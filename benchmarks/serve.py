"""A service and the bare prediction loop: images per second, times of requests, memory that grows.

    python benchmarks/serve.py --model built-in --requests 2000

The image is drawn: discs on noise, 1920 x 1080 unless --size says otherwise, as a JPEG. The loop runs in this process
before and after the service, over the same bytes, and makes the same JSON. With --objects, a model without a network
takes the place of --model, which finds so many discs in every image: what is measured then is everything around the
network.
"""

import argparse
import json
import re
import resource
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image, ImageDraw

from common_timing import describe
from maskkit.api import Segmenter, load
from maskkit.config import InputConfig
from maskkit.decode.grid import OverInput
from maskkit.infer.predict import Predictor
from maskkit.prediction import Categories


class Discs:
    """A runtime that finds the same discs in every image."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        centre, radius = random.uniform(8, 120, (count, 2)), random.uniform(2, 7, (count, 1))
        y, x = np.mgrid[:128, :128]
        far = np.hypot(y - centre[:, 1, None, None], x - centre[:, 0, None, None])
        self.outputs = {
            "boxes": (np.concatenate([centre - radius, centre + radius], 1) / 128).clip(0, 1).astype(np.float32),
            "labels": (np.arange(count) % 3).astype(np.float32),
            "scores": np.linspace(0.99, 0.51, count, dtype=np.float32),
            "masks": (1 / (1 + np.exp(far - radius[:, :, None]))).astype(np.float32),
        }
        self.outputs["mask_scores"] = self.outputs["scores"]

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.stack([value] * len(images)) for name, value in self.outputs.items()}


def discs(count: int) -> Segmenter:
    predictor = Predictor(Discs(count), OverInput(), InputConfig(size=(512, 512)), Categories.of(("a", "b", "c")))
    return Segmenter(predictor, "instance", {"score": 0.5})


def drawn(size: tuple[int, int]) -> bytes:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(90, 130, (size[1], size[0], 3), np.uint8))
    pen = ImageDraw.Draw(image)
    for x, y, radius in random.uniform((0, 0, 8), (*size, 40), (300, 3)):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), tuple(random.integers(0, 256, 3)))
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def resident(pid: int) -> float:
    """MB of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1000 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--objects", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080))
    args = parser.parse_args()
    image, make = drawn(tuple(args.size)), partial(load, args.model)
    if args.objects:
        make = partial(discs, args.objects)
    print(describe())

    def answer(segmenter: Segmenter) -> int:
        (prediction,) = segmenter.predictor.images([image], score=segmenter.score)
        return len(json.dumps(prediction.to_coco()))

    segmenter = make()
    found = answer(segmenter) and len(segmenter.predict(image))

    def loop(seconds: float = 20) -> float:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            answer(segmenter)
            count += 1
        return count / (time.perf_counter() - began)

    before = loop()
    print(f"{len(image) / 1e6:.2f} MB, {found} objects; the loop: {before:.2f} images/s before")

    import uvicorn

    from maskkit.serve.app import bound_socket, create_app
    from maskkit.serve.limits import Limits

    app, bound = create_app(make, limits=Limits(timeout=600, batch=args.batch)), bound_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url, pid = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/predict", app.state.service.queue.worker.pid
    times: list[float] = []

    def client(count: int) -> None:
        with httpx.Client(timeout=600, trust_env=False) as http:
            for _ in range(count):
                start = time.perf_counter()
                assert http.post(url, content=image, headers={"Content-Type": "image/jpeg"}).status_code == 200
                times.append(time.perf_counter() - start)

    def load_with(requests: int) -> float:
        times.clear()
        start = time.perf_counter()
        with ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(client, [requests // args.clients] * args.clients))
        return len(times) / (time.perf_counter() - start)

    load_with(min(args.requests, 20))
    memory = resident(pid)
    rate = load_with(args.requests)
    growth = resident(pid) - memory
    server.should_exit = True
    thread.join()
    after = loop()
    bare = (before + after) / 2
    cuts = statistics.quantiles(times, n=20)
    print(
        f"the loop: {after:.2f} images/s after\n"
        f"the service, {args.clients} clients, {len(times)} requests: "
        f"{rate:.2f} images/s ({rate / bare:.2f} of the "
        f"loop), p50 {1000 * cuts[9]:.0f} ms, p95 {1000 * cuts[18]:.0f} ms"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"the model's process grew by {growth:.0f} MB from {memory:.0f} MB; this one has {peak:.0f} MB at most")


if __name__ == "__main__":
    main()
