"""The contents of a data set: images, objects, pixels of label maps, what looks wrong in them, and tables of it all."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal
from unicodedata import normalize

import numpy as np
from rich.table import Table
from rich.text import Text

from maskkit.data.class_files import EXAMPLE
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import BACKGROUND, IGNORE, LabelFile
from maskkit.data.records import Annotation, Record, area_of
from maskkit.data.rules import counted, folded
from maskkit.prediction import Categories

Pixels = Mapping[int, int]
"""Pixels of each class number, of `BACKGROUND` and of `IGNORE`, in one label map."""

_SMALL = 32 * 32  # COCO's border between small and medium objects, in pixels
_TINY = 2.0  # pixels: both sides of a box that nobody draws
_UNKNOWN = 0.5
"""Share of unknown pixels from which on a data set is doubtful."""


@dataclass(frozen=True)
class MapSummary:
    """The contents of the label maps that were read."""

    maps: int
    classes: dict[str, int]
    """Pixels of every class."""
    background: int
    """Pixels that have no class of the list."""
    unknown: int
    """Pixels whose class is unknown."""
    blank: list[Path]
    """Images whose label map has no pixel of a known class."""

    @property
    def pixels(self) -> int:
        """All pixels."""
        return sum(self.classes.values()) + self.background + self.unknown

    @property
    def told_apart(self) -> int:
        """How many classes have a pixel, the background among them."""
        return sum(n > 0 for n in (*self.classes.values(), self.background))


@dataclass(frozen=True)
class Summary:
    """The contents of one split. Crowds are counted separately, not as objects."""

    images: int
    empty: int
    """Images without an object."""
    objects: int
    box_only: int
    """Objects without a known mask."""
    crowds: int
    small: int
    """Objects smaller than 32 x 32 pixels."""
    classes: dict[str, int]
    """Objects of every class."""
    sizes: Counter[tuple[int, int]]
    """Images of every (H, W)."""
    per_image: list[int]
    """Objects of every image."""
    labels: MapSummary | None = None
    """What the label maps hold, where there are some and their pixels are known."""
    tags: dict[str, int] | None = None
    """Images of every class, where only tags are known."""
    fault: str | None = None
    """Why nothing can be learnt from label maps that are all there is."""


def summarise(dataset: Dataset, pixels: Mapping[Record, Pixels | None]) -> Summary:
    """The contents of ``dataset``; ``pixels`` has those of each label map that was read."""
    pairs = [(r, a) for r in dataset.records for a in r.annotations if not a.crowd]
    counts = Counter(a.label for _, a in pairs)
    per_image = [sum(not a.crowd for a in r.annotations) for r in dataset.records]
    crowds = sum(a.crowd for r in dataset.records for a in r.annotations)
    sources = [r.semantic for r in dataset.records if r.semantic is not None]
    files = bool(sources) and all(isinstance(s, LabelFile) for s in sources)
    mapped = files or any(s.known for s in sources)
    labels = _summarise_maps(dataset, pixels) if mapped else None
    tagged = Counter(c for s in sources for c in s.classes)
    return Summary(
        images=len(dataset),
        empty=per_image.count(0),
        objects=len(pairs),
        box_only=sum(a.segmentation is None for _, a in pairs),
        crowds=crowds,
        small=sum(area_of(a, r.size) < _SMALL for r, a in pairs),
        classes={name: counts[i] for i, name in enumerate(dataset.categories.titles)},
        sizes=Counter(r.size for r in dataset.records),
        per_image=per_image,
        labels=labels,
        tags={name: tagged[i] for i, name in enumerate(dataset.categories.titles)} if sources and not mapped else None,
        fault=_fault(dataset, labels) if labels is not None and files and not pairs and not crowds else None,
    )


def _summarise_maps(dataset: Dataset, pixels: Mapping[Record, Pixels | None]) -> MapSummary:
    read = {r: p for r, p in pixels.items() if p is not None}
    total: Counter[int] = Counter()
    for found in read.values():
        total.update(found)
    return MapSummary(
        len(read),
        {name: total[i] for i, name in enumerate(dataset.categories.titles)},
        total[BACKGROUND],
        total[IGNORE],
        [r.path for r, p in read.items() if not any(p[n] for n in p if n != IGNORE)],
    )


def _fault(dataset: Dataset, labels: MapSummary) -> str | None:
    if not labels.maps or labels.told_apart > 1:
        return None
    there = [name for name, n in labels.classes.items() if n] + ["background"] * (labels.background > 0)
    if dataset.format == "png" and labels.unknown:
        values = [c.id for c, n in zip(dataset.categories, labels.classes.values(), strict=True) if n]
        held = f"the values {values[0]} and {IGNORE}" if values else f"the value {IGNORE}"
        return (
            f"the label images hold only {held}, and {IGNORE} means unknown, so there is nothing to tell apart; if "
            f"{IGNORE} is a class of yours, say so in {dataset.source / 'classes.json'}: {EXAMPLE}"
        )
    what = f"every pixel whose class is known is {there[0]}" if there else "no pixel's class is known"
    return f"{what}, so there is nothing to tell apart; add label maps of other classes"


def doubts(dataset: Dataset, summary: Summary) -> Iterator[tuple[Literal["error", "warning"], str]]:
    """What looks wrong in the contents, each with its level."""
    if summary.fault is not None:
        yield "error", summary.fault
        return
    if not dataset.categories.names:
        yield "error", "there is no class and no object, so there is nothing to learn; add labels"
        return
    labels = summary.labels
    for text in (
        *_class_doubts(dataset.categories),
        *_object_doubts(dataset),
        *(_map_doubts(labels) if labels is not None else ()),
    ):
        yield "warning", text
    kinds = (summary.classes, labels.classes if labels else {}, summary.tags or {})
    absent = [name for name in summary.classes if not any(kind.get(name) for kind in kinds)]
    if absent and summary.images and (labels is None or labels.maps == summary.images):
        what = "object" if labels is None and summary.tags is None else "image" if labels is None else "pixel"
        yield "warning", f"no {what} of {', '.join(absent)}; the class cannot be trained or evaluated"


def _class_doubts(categories: Categories) -> Iterator[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name, uses in Counter(categories.names).items():
        alike[folded(name)].append(name)
        if uses > 1:
            yield f"{uses} classes are called {name!r}; give each its own name, or join them if they are one"
    for names in alike.values():
        if len(names) > 1:
            look_alike = len({normalize("NFC", name) for name in names}) < len(names)
            shown = " and ".join(map(ascii if look_alike else repr, names))
            yield (
                f"the classes {shown} differ only in case, in spaces around them or in the form of letters, and are "
                "classes of their own; if they are one, give them one name"
            )


def _object_doubts(dataset: Dataset) -> Iterator[str]:
    boxes = [a.box for r in dataset.records for a in r.annotations if a.box is not None]
    tiny = sum(max(x2 - x1, y2 - y1) < _TINY for x1, y1, x2, y2 in boxes)
    if tiny > len(boxes) / 2:
        yield (
            f"{tiny} of {len(boxes)} boxes are smaller than {_TINY:g} pixels; if the coordinates are fractions of the "
            "image, multiply x by its width and y by its height"
        )
    repeated = {r.path: n for r in dataset.records if (n := _repetitions(r.annotations))}
    if repeated:
        yield (
            f"{counted(sum(repeated.values()), 'object', be=True)} there twice, with one class, box and mask, as in "
            f"{next(iter(repeated)).name}; remove them, because a model finds such an object once"
        )


def _repetitions(objects: Sequence[Annotation]) -> int:
    """How many objects have class, box and mask of one before them."""
    alike: dict[object, list[Annotation]] = defaultdict(list)
    for a in objects:
        if not a.crowd:
            alike[a.label, a.box].append(a)
    several = (same for same in alike.values() if len(same) > 1)
    return sum(len(same) - len({_shape(a) for a in same}) for same in several)


def _shape(annotation: Annotation) -> object:
    """What is equal for equal masks of one origin."""
    shape = annotation.segmentation
    if isinstance(shape, dict):
        return shape["counts"]
    return tuple(np.asarray(part).tobytes() for part in shape) if isinstance(shape, Sequence) else shape


def _map_doubts(labels: MapSummary) -> Iterator[str]:
    if labels.unknown > _UNKNOWN * labels.pixels:
        yield (
            f"the class of {labels.unknown / labels.pixels:.0%} of the pixels is unknown; they are neither trained nor "
            "evaluated. If that is not meant, look at the samples of maskkit check --out"
        )
    if labels.blank:
        shown = ", ".join(p.name for p in labels.blank[:3]) + (", ..." if len(labels.blank) > 3 else "")
        yield f"{counted(len(labels.blank), 'label map')} without a pixel of known class: {shown}"


def tables(source: str, formats: Mapping[str, str], summaries: Mapping[str, Summary]) -> Iterator[Table]:
    """The contents of all splits; then objects, pixels or images of each class, whichever there are."""
    yield _contents(source, formats, summaries)
    parts = summaries.values()
    if any(s.objects for s in parts) or all(s.labels is None and s.tags is None for s in parts):
        yield _by_class("objects per class", summaries, [{k: str(n) for k, n in s.classes.items()} for s in parts])
    if any(s.labels for s in parts):
        yield _by_class("pixels per class in the label maps", summaries, [_pixel_rows(s.labels) for s in parts])
    if any(s.tags for s in parts):
        yield _by_class("images per class", summaries, [{k: str(n) for k, n in (s.tags or {}).items()} for s in parts])


def _pixel_rows(labels: MapSummary | None) -> dict[str, str]:
    if labels is None:
        return {}
    others = {"(no class of the list)": labels.background, "(unknown)": labels.unknown}
    rows = labels.classes | {name: n for name, n in others.items() if n}
    return {name: f"{n:,}  {n / max(labels.pixels, 1):7.2%}" for name, n in rows.items()}


def _by_class(title: str, splits: Iterable[str], columns: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for name in splits:
        table.add_column(name, justify="right")
    for label in dict.fromkeys(c for column in columns for c in column):
        table.add_row(Text(label), *(column.get(label, "0") for column in columns))
    return table


def _contents(source: str, formats: Mapping[str, str], summaries: Mapping[str, Summary]) -> Table:
    table = Table(title=Text(source), title_justify="left")
    table.add_column("")
    rows: dict[str, list[str]] = defaultdict(list)
    objects = any(s.objects or s.crowds or (s.labels is None and s.tags is None) for s in summaries.values())
    for name, s in summaries.items():
        table.add_column(name, justify="right")
        heights, widths = zip(*s.sizes, strict=True) if s.sizes else ((0,), (0,))
        rows["format"].append(formats[name])
        rows["images"].append(str(s.images))
        if objects:
            rows["  without objects"].append(str(s.empty))
        rows["  width"].append(f"{min(widths)} to {max(widths)}")
        rows["  height"].append(f"{min(heights)} to {max(heights)}")
        if any(other.labels for other in summaries.values()):
            read = s.labels.maps if s.labels else 0
            rows["label maps"].append(str(read) if read == s.images else f"{read} of {s.images} read")
        if objects:
            rows["objects"].append(str(s.objects))
            rows["  per image, median and most"].append(
                f"{median(s.per_image or [0]):g}, {max(s.per_image, default=0)}"
            )
            rows["  smaller than 32 x 32"].append(f"{s.small / max(s.objects, 1):.0%}")
            rows["  with a box only"].append(str(s.box_only))
            rows["crowds"].append(str(s.crowds))
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table
