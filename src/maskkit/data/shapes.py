"""A synthetic data set for tests and the demo: textured, overlapping objects, some with holes or two parts.

An object is given by its signed distance (pixels, negative inside) at the pixel centres of its box: the sign is the
mask, and a ramp of one pixel is its soft edge. Later objects cover earlier ones, and poles, which have no class, cut
objects in two.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage
from torch import Tensor

from maskkit.data.dataset import Dataset
from maskkit.data.patches import Patch, Patches
from maskkit.data.records import Annotation, Record
from maskkit.files import replacing
from maskkit.prediction import Categories, ImageId
from maskkit.targets import Target

Plane = Float[np.ndarray, "h w"]
Distance = Callable[[Plane, Plane, float], Plane]

LEAST_VISIBLE = 0.3
"""Share of every object that stays visible; an object that would hide more of another is not drawn."""


def _disc(u: Plane, v: Plane, r: float) -> Plane:
    return np.hypot(u, v) - r


def _ring(u: Plane, v: Plane, r: float) -> Plane:
    return np.abs(np.hypot(u, v) - 0.75 * r) - 0.25 * r


def _square(u: Plane, v: Plane, r: float) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75 * r


def _star(u: Plane, v: Plane, r: float) -> Plane:
    # In the tenth of the circle between a tip and a notch, the outline is one straight edge.
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(u, v)
    tip, notch = np.array([r, 0.0]), 0.45 * r * np.array([np.cos(tenth), np.sin(tenth)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    normal /= np.hypot(*normal)
    return radius * (np.cos(angle) * normal[0] + np.sin(angle) * normal[1]) - tip @ normal


def _pair(u: Plane, v: Plane, r: float) -> Plane:
    return np.hypot(np.abs(u) - 0.6 * r, v) - 0.4 * r


_SHAPES: dict[str, Distance] = {"disc": _disc, "ring": _ring, "square": _square, "star": _star, "pair": _pair}

CATEGORIES = Categories.of(_SHAPES)
"""Disc, ring (with a hole), square, star and pair (of two separate parts)."""


def draw(
    seed: int,
    size: tuple[int, int] = (256, 256),
    objects: tuple[int, int] = (3, 8),
    *,
    crowd: bool = False,
    box_only: float = 0.0,
) -> tuple[UInt8[Tensor, "3 h w"], Target]:
    """An image of ``size`` (H, W) with ``objects`` (least, most) objects of `CATEGORIES`, the same for the same seed.

    ``crowd`` adds many small discs with one crowd annotation, which comes last; ``box_only`` is the probability that
    an object has a box but no known mask. Boxes are tight around the visible part. There are fewer objects when there
    is no more room.
    """
    rng = np.random.default_rng(seed)
    canvas = _background(size, rng)
    layers = _Layers(size)
    if crowd:
        _draw_crowd(canvas, layers, rng)
    wanted = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(10 * wanted):
        if len(layers.labels) == wanted + crowd:
            break
        _draw_object(canvas, layers, rng)
    if rng.random() < 0.3:
        _draw_pole(canvas, layers, rng)
    canvas += 4 * rng.standard_normal(canvas.shape, np.float32)

    image = torch.from_numpy(canvas.round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1).copy())  # (3, H, W)
    order = np.roll(np.arange(len(layers.labels)), -crowd)
    labels, masks = np.array(layers.labels, np.int64)[order], layers.masks()[order]
    is_crowd = labels < 0
    known = (rng.random(len(labels)) >= box_only) | is_crowd
    return image, Target.of(masks.boxes(), np.maximum(labels, 0), masks.only(known), is_crowd, known)


@dataclass(frozen=True, eq=False)
class ShapesDataset(Dataset):
    """A `Dataset` of drawn images in memory."""

    images: dict[ImageId, UInt8[Tensor, "3 h w"]] = field(default_factory=dict)
    """Pixels by image id."""

    def _read(self, record: Record) -> UInt8[np.ndarray, "h w 3"]:
        return self.images[record.image_id].permute(1, 2, 0).numpy()


def shapes_dataset(
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    objects: tuple[int, int] = (3, 8),
    *,
    crowd: bool = False,
    box_only: float = 0.0,
    folder: str | Path = "shapes",
) -> ShapesDataset:
    """``count`` images of `draw` with the image ids 1, 2, ...; their paths are in ``folder``, without files."""
    folder = Path(folder)
    records, images = [], {}
    number = 0
    for i in range(count):
        image, target = draw(seed * 1_000_003 + i, size, objects, crowd=crowd, box_only=box_only)
        assert target.masks is not None
        annotations = []
        for box, label, rle, known, is_crowd in zip(
            target.boxes.tolist(),
            target.labels.tolist(),
            target.masks.rle(),
            target.has_mask,
            target.crowd,
            strict=True,
        ):
            number += 1
            annotations.append(Annotation(number, label, tuple(box), rle if known else None, bool(is_crowd)))
        records.append(Record(i + 1, folder / "images" / f"{i + 1:05d}.jpg", size, annotations))
        images[i + 1] = image
    return ShapesDataset(records, CATEGORIES, folder, "shapes", images=images)


def write(
    folder: str | Path,
    train: int = 200,
    val: int = 50,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    objects: tuple[int, int] = (3, 8),
) -> Path:
    """A COCO data set of drawn images: ``images/*.jpg``, ``train.json`` and ``val.json`` in ``folder``."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    everything = shapes_dataset(train + val, seed, size, objects, folder=folder)
    for record in everything.records:
        pixels = everything.images[record.image_id].permute(1, 2, 0).numpy()  # (H, W, 3)
        Image.fromarray(pixels).save(record.path, quality=92)
    for name, indices in (("train", range(train)), ("val", range(train, train + val))):
        with replacing(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(everything.subset(indices).coco()), encoding="utf-8")
    return folder


class _Layers:
    """The object of each pixel: ``numbers`` (H, W), 1 for the first of ``labels``, 0 for none. Label -1: a crowd."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.numbers = np.zeros(size, np.int32)
        self.labels: list[int] = []
        self.whole = np.zeros(1, np.int64)
        """Pixels of each number when it was drawn; entry 0 is not used."""
        self.visible = np.zeros(1, np.int64)

    def _left(self, region: tuple[slice, slice], shape: np.ndarray) -> np.ndarray:
        """Pixels of each number still visible when ``shape`` covers ``region``."""
        return self.visible - np.bincount(self.numbers[region][shape], minlength=len(self.visible))

    def masks(self) -> Patches:
        """The visible part of each object."""
        found = ndimage.find_objects(self.numbers, len(self.labels))
        patches = [
            Patch((self.numbers[part] == i).view(np.uint8), part[1].start, part[0].start)
            for i, part in enumerate(found, 1)
        ]
        return Patches(self.numbers.shape, patches)

    def room(self, region: tuple[slice, slice], shape: np.ndarray) -> bool:
        """Whether enough of every object stays visible when ``shape`` covers ``region``."""
        return bool((self._left(region, shape) >= LEAST_VISIBLE * self.whole)[1:].all())

    def add(self, region: tuple[slice, slice], shape: np.ndarray, label: int) -> None:
        """Add an object on top."""
        self.labels.append(label)
        area = np.count_nonzero(shape)
        self.visible, self.whole = np.append(self._left(region, shape), area), np.append(self.whole, area)
        self.numbers[region][shape] = len(self.labels)


def _draw_object(canvas: np.ndarray, layers: _Layers, rng: np.random.Generator) -> None:
    """One object at a random position, unless it would hide too much of another."""
    height, width = layers.numbers.shape
    label = int(rng.integers(len(CATEGORIES)))
    radius = min(height, width) * math.exp(rng.uniform(math.log(0.07), math.log(0.24)))
    x, y = rng.uniform(0.4 * radius, width - 0.4 * radius), rng.uniform(0.4 * radius, height - 0.4 * radius)
    region, u, v = _local(layers.numbers.shape, x, y, radius, rng.uniform(0, 2 * np.pi))
    distance = _SHAPES[CATEGORIES.names[label]](u, v, radius)
    colour = _texture(u, v, radius, _colour(rng), rng)
    shape = distance < 0
    if shape.sum() < 30 or not layers.room(region, shape):
        return
    shade = 1.1 - 0.25 * (u**2 + v**2)[..., None] / radius**2  # darker towards the edge, like a sphere
    _blend(canvas[region], colour * shade, distance)
    layers.add(region, shape, label)


def _draw_crowd(canvas: np.ndarray, layers: _Layers, rng: np.random.Generator) -> None:
    """Many small discs close together: one crowd."""
    height, width = layers.numbers.shape
    spread = 0.15 * min(height, width)
    centre = np.array([rng.uniform(spread, width - spread), rng.uniform(spread, height - spread)])
    colour = _colour(rng)
    everywhere = (slice(None), slice(None))
    covered = np.zeros((height, width), bool)
    for x, y in centre + rng.normal(0, 0.5 * spread, (25, 2)):
        radius = rng.uniform(0.1, 0.2) * spread + 1
        region, u, v = _local((height, width), x, y, radius, 0.0)
        distance = _disc(u, v, radius)
        _blend(canvas[region], colour * rng.uniform(0.7, 1.2), distance)
        covered[region] |= distance < 0
    layers.add(everywhere, covered, -1)


def _draw_pole(canvas: np.ndarray, layers: _Layers, rng: np.random.Generator) -> None:
    """A thin bar from border to border, without a class, that cuts objects in two."""
    height, width = layers.numbers.shape
    x, lean = width * rng.uniform(0.3, 0.7), rng.uniform(-0.5, 0.5)
    everywhere, u, _ = _local((height, width), x, height / 2, 2.0 * max(height, width), lean)
    half = rng.uniform(0.01, 0.02) * min(height, width)
    distance = np.abs(u) - half
    shape = distance < 0
    if layers.room(everywhere, shape):
        _blend(canvas, _colour(rng) * (0.6 + 0.4 * np.cos(u / half))[..., None], distance)
        layers.numbers[shape] = 0


def _local(
    size: tuple[int, int], x: float, y: float, radius: float, angle: float
) -> tuple[tuple[slice, slice], Plane, Plane]:
    """The region within ``radius`` of (x, y), and its pixel centres in axes through (x, y) rotated by ``angle``."""
    height, width = size
    x1, x2 = max(0, int(x - radius) - 1), min(width, int(x + radius) + 2)
    y1, y2 = max(0, int(y - radius) - 1), min(height, int(y + radius) + 2)
    dx = np.arange(x1, max(x1, x2), dtype=np.float32)[None] + 0.5 - x
    dy = np.arange(y1, max(y1, y2), dtype=np.float32)[:, None] + 0.5 - y
    cos, sin = math.cos(angle), math.sin(angle)
    return (slice(y1, max(y1, y2)), slice(x1, max(x1, x2))), cos * dx + sin * dy, cos * dy - sin * dx


def _blend(canvas: np.ndarray, colour: np.ndarray, distance: Plane) -> None:
    """Blend ``colour`` onto the canvas, with a soft edge one pixel wide."""
    alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
    canvas += alpha * (colour - canvas)


def _colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    """A colour that is neither grey nor dark."""
    hue = rng.uniform(0, 2 * np.pi)
    wheel = 0.5 + 0.5 * np.cos(hue - np.array([0, 2, 4]) * np.pi / 3)
    return (60 + 170 * wheel).astype(np.float32)


def _texture(
    u: Plane, v: Plane, radius: float, colour: Float[np.ndarray, "3"], rng: np.random.Generator
) -> Float[np.ndarray, "*hw 3"]:
    """The colour of each pixel of an object: plain, striped, chequered or dotted."""
    period = max(3.0, radius * rng.uniform(0.25, 0.5))
    other = _colour(rng) * rng.choice(np.array([0.4, 1.0], np.float32))
    kind = rng.choice(["plain", "stripes", "checks", "dots"])
    if kind == "plain":
        return colour
    pattern = np.sin(2 * np.pi / period * u)
    if kind == "checks":
        pattern *= 2 * np.sin(2 * np.pi / period * v)
    elif kind == "dots":
        pattern += np.sin(2 * np.pi / period * v) - 1
    share = (0.25 + 0.25 * np.clip(3 * pattern, -1, 1))[..., None]
    return colour + (other - colour) * share


def _background(size: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Smooth noise of three coarse scales between two muted colours."""
    noise = np.zeros(size, np.float32)
    for cells, strength in ((2, 0.6), (5, 0.3), (24, 0.15)):
        grid = rng.random((cells + 1, cells + 1), np.float32)
        noise += strength * (_ramps(size[0], cells) @ grid @ _ramps(size[1], cells).T)
    low, high = ((rng.uniform(30, 190) + rng.uniform(-25, 25, 3)).astype(np.float32) for _ in range(2))
    return low + (high - low) * noise[..., None]


def _ramps(n: int, cells: int) -> Float[np.ndarray, "n m"]:
    """Weights that interpolate ``cells + 1`` values smoothly at ``n`` points."""
    place = (np.arange(n, dtype=np.float32) + 0.5) * (cells / n)
    weight = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells + 1, dtype=np.float32)))
    return weight**2 * (3 - 2 * weight)
