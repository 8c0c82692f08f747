"""Tracking on labelled videos, its time, the memory of a long video, and frames per second from MP4 to MP4.

    python benchmarks/video.py --data DATA/video_davis
    python benchmarks/video.py --data DATA/video_davis --models built-in yolact.xml --threads 2
    python benchmarks/video.py --data DATA/video_davis --only memory --network built-in.xml

The labels of the videos, moved, grown or shrunk at random and at times left out or with a low score, serve as
detections: each video alone, and the objects of all of them in one frame, where they cross and hide each other. The
tracker gets them with masks and with their boxes alone. HOTA is that of masks (Luiten et al. 2021), IDF1 that of
Ristani et al. 2016 at an IoU of 0.5, both as TrackEval computes them (pip install trackeval).
"""

import argparse
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from common_timing import describe
from maskkit import api
from maskkit.cli.predict_video import predict_video
from maskkit.config import InputConfig
from maskkit.decode import LabelMap
from maskkit.geometry import rle
from maskkit.infer import video_writer
from maskkit.infer.draw import Style
from maskkit.infer.predict import Predictor
from maskkit.infer.selection import Selection
from maskkit.infer.track import Tracker
from maskkit.infer.video import Clip
from maskkit.prediction import Categories, ImageMeta, Instances, Masks, Prediction

SIZE = (360, 640)
CLASSES = Categories.of(["object"])
Frame = dict[int, np.ndarray]
"""Masks by the number of an object or of a track."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("memory",), help="what to measure; by default everything")
    parser.add_argument("--frames", type=int, default=2000, help="length of the video whose memory is measured")
    parser.add_argument("--network", help="the model for that; by default bright pixels are a class, without a network")
    parser.add_argument("--stop", type=float, help="seconds of the video for --models")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(describe(given.threads))
    if given.only == "memory":
        return memory(given.frames, given.data, given.network)
    videos = {p.name: labels(p) for p in sorted(given.data.iterdir()) if (p / "masks").is_dir()}
    identity(videos, given.seeds)
    milliseconds()
    if given.frames:
        memory(given.frames, given.data, given.network)
    if given.models:
        speed(given.data, given.models, given.stop, given.threads)


def labels(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) == 1 for path in sorted((folder / "masks").iterdir())]


def identity(videos: dict[str, list[np.ndarray]], seeds: int) -> None:
    scenes = {name: [visible([mask]) for mask in masks] for name, masks in videos.items()}
    together = min(map(len, videos.values()))
    scenes["all in one frame"] = [visible([masks[t] for masks in videos.values()]) for t in range(together)]
    print("video, objects: HOTA, IDF1, mean mask IoU, tracks, with masks | with boxes")
    for name, truth in scenes.items():
        shown = []
        for boxes in (False, True):
            runs = [scores(truth, follow(truth, boxes, seed)) for seed in range(seeds)]
            shown.append("{:.3f} {:.3f} {:.3f} {:.1f}".format(*np.mean(runs, 0)))
        print(f"{name}, {len({n for frame in truth for n in frame})}: {' | '.join(shown)}")


def visible(masks: list[np.ndarray]) -> Frame:
    """What is seen of masks, the last one in front."""
    left, found = np.ones(SIZE, bool), {}
    for number in range(len(masks) - 1, -1, -1):
        part = masks[number] & left
        left &= ~part
        if part.sum() >= 30:
            found[number] = part
    return found


def follow(truth: list[Frame], boxes: bool, seed: int) -> list[Frame]:
    """The tracks for detections made of the labels. The masks are given back also where the tracker sees boxes."""
    rng, tracker, tracks = np.random.default_rng(seed), Tracker(0.5, 25), []
    for frame in truth:
        masks, chances = [], []
        for mask in frame.values():
            if rng.random() >= 0.1:  # else it is not found
                masks.append(jittered(mask, rng))
                chances.append(rng.uniform(0.2, 0.5) if rng.random() < 0.2 else rng.uniform(0.5, 1))
        order = np.argsort(chances)[::-1].tolist()
        stored = Masks(SIZE, rle.encode(np.array([masks[i] for i in order], bool).reshape(-1, *SIZE)))
        values = np.array([chances[i] for i in order])
        found = Instances(stored.boxes(), np.zeros(len(order), np.int64), values, None if boxes else stored)
        found.mask_scores = np.arange(len(order))  # comes back: which mask it is
        kept = tracker(Prediction(ImageMeta(1, "", SIZE, SIZE), CLASSES, found)).instances
        assert kept is not None
        assert kept.mask_scores is not None
        assert kept.track_ids is not None
        pairs = zip(kept.track_ids.tolist(), kept.mask_scores.tolist(), strict=True)
        tracks.append({number: masks[order[which]] for number, which in pairs})
    return tracks


def jittered(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by up to two pixels, and two pixels wider or narrower."""
    moved = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
    change = ndimage.binary_dilation if rng.random() < 0.5 else ndimage.binary_erosion
    changed = change(moved, iterations=int(rng.integers(1, 3)))
    return changed if changed.any() else moved


def scores(truth: list[Frame], tracks: list[Frame]) -> tuple[float, float, float, int]:
    """HOTA, IDF1, the mean IoU of each label with its best track in that frame, and the number of tracks."""
    from trackeval.metrics import HOTA, Identity

    alike = [iou(a, b) for a, b in zip(truth, tracks, strict=True)]
    (objects, theirs), (numbers, ours) = numbered(truth), numbered(tracks)
    data = {
        "num_gt_ids": len(objects),
        "num_tracker_ids": len(numbers),
        "num_gt_dets": sum(map(len, truth)),
        "num_tracker_dets": sum(map(len, tracks)),
        "gt_ids": theirs,
        "tracker_ids": ours,
        "similarity_scores": alike,
    }
    hota = np.mean(HOTA().eval_sequence(data)["HOTA"])
    identity = Identity({"PRINT_CONFIG": False}).eval_sequence(data)["IDF1"]
    overlaps = [v for sim in alike for v in (sim.max(1) if sim.shape[1] else np.zeros(len(sim)))]
    return float(hota), float(identity), float(np.mean(overlaps)), len(numbers)


def numbered(frames: list[Frame]) -> tuple[list[int], list[np.ndarray]]:
    """The numbers that occur, and for each frame the places of its own among them."""
    known = sorted({n for frame in frames for n in frame})
    return known, [np.array([known.index(n) for n in frame], int) for frame in frames]


def iou(a: Frame, b: Frame) -> np.ndarray:
    first, second = (rle.encode(np.array(list(f.values()), bool).reshape(-1, *SIZE)) for f in (a, b))
    return rle.iou(first, second)


def milliseconds() -> None:
    """Processor time of the tracker for 50 moving ellipses with rough outlines in 1280 x 720 pixels."""
    rng, size, tracker, took = np.random.default_rng(0), (720, 1280), Tracker(0.5), []
    place, step = rng.uniform(0.1, 0.9, (50, 2)) * size, rng.uniform(-4, 4, (50, 2))
    y, x = np.mgrid[-40:40, -30:30]
    for _ in range(60):
        place += step
        masks = []
        for n, (cy, cx) in enumerate(place):
            blob = (y / 40) ** 2 + (x / 30) ** 2 < 1 + 0.1 * np.sin(n + y / 3)
            top, left = int(np.clip(cy, 40, size[0] - 40)) - 40, int(np.clip(cx, 30, size[1] - 30)) - 30
            masks.append(rle.encode_region(blob, top, left, size))
        stored = Masks(size, masks)
        found = Instances(stored.boxes(), np.zeros(50, np.int64), np.full(50, 0.9), stored)
        begin = time.thread_time()
        tracker(Prediction(ImageMeta(1, "", size, size), CLASSES, found))
        took.append(time.thread_time() - begin)
    print(f"tracker, 50 objects: {1000 * np.median(took):.1f} ms a frame in the median, {1000 * max(took):.1f} at most")


class Threshold:
    """A runtime that takes bright pixels for the class 1."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        bright = images[:, 0] > 128
        return {"logits": np.stack([~bright, bright], 1).astype(np.float32)}


def memory(frames: int, data: Path, network: str | None) -> None:
    """The resident memory of a prediction from MP4 to MP4 as the frames go by: those of all videos, again and again."""
    sizes = {}
    marks = sorted({100, frames // 4, frames // 2, frames})
    add = video_writer.Mp4Writer.add

    def watched(self: video_writer.Mp4Writer, pixels: np.ndarray, seconds: float) -> None:
        add(self, pixels, seconds)
        if self.frames in marks:
            sizes[self.frames] = resident()

    input = InputConfig(size=SIZE, resize="stretch", mean=(0, 0, 0), std=(1, 1, 1))
    plain = api.Segmenter(Predictor(Threshold(), LabelMap(), input, Categories.of(["dark", "bright"])), "semantic")
    model = api.load(network, "cpu", torch.get_num_threads()) if network else plain
    with tempfile.TemporaryDirectory() as folder:
        path = joined(data, Path(folder) / "long.mp4", frames)
        video_writer.Mp4Writer.add = watched
        try:
            run(model, path, Path(folder) / "out", None)
        finally:
            video_writer.Mp4Writer.add = add
    grown = ", ".join(f"{n}: {(sizes[n] - sizes[100]) / 2**20:+.1f}" for n in marks[1:])
    print(f"{network or 'no network'}: memory after so many frames less that after 100, MiB: {grown}", flush=True)


def joined(data: Path, path: Path, frames: int | None = None) -> Path:
    """An MP4 file of the frames of all videos, one after the other, or of the first ``frames`` of their repetition."""
    images = [image for video in sorted(data.iterdir()) for image in sorted((video / "frames").glob("*.jpg"))]
    with video_writer.Mp4Writer(path, Fraction(24)) as writer:
        for n in range(frames or len(images)):
            writer.add(np.asarray(Image.open(images[n % len(images)])), n / 24)
    return path


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def run(model: api.Segmenter, path: Path, out: Path, stop: float | None) -> None:
    track = model.task_name == "instance"
    clip = Clip(stop=stop)
    predict_video(model, str(path), out, clip, track, Selection(), Style(), model.score, 1)


def speed(data: Path, models: list[str], stop: float | None, threads: int) -> None:
    """The frames of all videos, one after the other, as an MP4 file; the first run of each model is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = joined(data, Path(folder) / "davis.mp4")
        frames = sum(1 for _ in data.glob("*/frames/*.jpg"))
        count = frames if stop is None else min(frames, int(stop * 24))
        for name in models:
            model = api.load(name, "cpu", threads, throughput=True)  # as maskkit predict does
            run(model, path, Path(folder) / "first", 0.5)
            begin, clock = time.process_time(), time.perf_counter()
            run(model, path, Path(folder) / "out", stop)
            took, wall = time.process_time() - begin, time.perf_counter() - clock
            print(f"{name}: {count / wall:.1f} frames/s, {1000 * took / count:.0f} ms of processor time per frame")


if __name__ == "__main__":
    main()
