"""Label Studio: a json list of tasks, each with an image and the regions of its annotations.

Polygons and ellipses are masks, a brush has run lengths of the image's pixels, a rectangle is an object without a known
mask. Coordinates are percent of the image. Of several annotations of a task the first that was not cancelled counts; a
task without one is not labelled. The note ``crowd`` of a region marks a crowd, ``image_id`` in the data of a task is
the image's id. Classes are those of ``label_config.xml`` beside the file, in that order, then others that occur.

Format: https://labelstud.io/guide/export; run lengths of the brush: https://github.com/thi-ng/umbrella (rle-pack)
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Bool

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import image_folders
from maskkit.data.formats import drawn
from maskkit.data.formats.drawn import Entry, Shape, Size
from maskkit.data.images import SUFFIXES
from maskkit.data.places import locate
from maskkit.data.rules import Problems, Warn, kind_of, to_number, to_numbers, turned
from maskkit.data.text_files import read_xml
from maskkit.errors import DataError
from maskkit.geometry.rle import Rle

LAYOUT = "Label Studio: an export as JSON, or train.json and val.json, with images/"

_AREAS = {"polygon", "brush", "rectangle", "ellipse"}
_WHOLE = {"choices", "taxonomy"}
"""Results that are classes of the image."""
_NO_REGIONS = _WHOLE | {"textarea", "rating", "number", "datetime", "pairwise", "ranker", "relation", ""}
"""Results that are no regions, and the labels of regions that are in results of their own."""
_LARGEST = 1 << 28
"""Pixels of the rows that a brush may cover."""


def find(path: Path) -> list[tuple[str | None, Path]]:
    """Label Studio's files with their splits: the file itself, or those of a folder."""
    return drawn.json_files(path, _is_export)


def recognise(path: Path) -> bool:
    """Whether the file is Label Studio's, or the folder has one."""
    return bool(find(path))


def splits(path: Path) -> list[str]:
    """Names of the splits that have a file."""
    return drawn.in_order(split for split, _ in find(path))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a file, or of all files of a folder; with ``split`` those of that file.

    Raises `DataError` when no file can be read.
    """
    problems = Problems()
    contents = drawn.load_all(path, find(path), problems)
    entries, listed, used = [], {}, set()
    for part, file, content in contents:
        listed |= dict.fromkeys(_configured(file, problems))
        tasks = content if isinstance(content, list) else [content]
        found = list(_entries(part, file, tasks, problems))
        used |= {name for _, regions in found for row in regions for name in _names(row, regions)}
        entries += [entry for entry, _ in found]
    folders = dict.fromkeys(folder for _, file, _ in contents for folder in image_folders(file))
    chosen = drawn.chosen(path, entries, split, problems)
    return drawn.dataset(path, "labelstudio", chosen, listed | dict.fromkeys(sorted(used)), folders, problems)


def _is_export(opening: str) -> bool:
    start = re.match(r"\ufeff?\s*\[?\s*\{", opening)
    if re.search(r'"(images|items)"\s*:\s*\[', opening):
        return False
    annotated = re.search(r'"(annotations|completions)"\s*:\s*\[', opening)
    return bool(start and annotated and re.search(r'"data"\s*:\s*\{|"result"\s*:\s*\[\s*(\{|\])', opening))


def _configured(file: Path, problems: Problems) -> list[str]:
    """The classes of the labelling interface, where it lies beside the file."""
    config = file.parent / "label_config.xml"
    if not config.is_file():
        return []
    try:
        return [name for node in read_xml(config).iter("Label") if (name := node.get("value"))]
    except DataError as error:
        problems.error(config, "", str(error))
        return []


def _entries(
    split: str | None, file: Path, tasks: Sequence[Any], problems: Problems
) -> Iterator[tuple[Entry, list[dict[str, Any]]]]:
    """The labelled images of a file, each with its regions."""
    folders, bare, whole = image_folders(file), 0, 0
    for i, task in enumerate(tasks, 1):
        where = f"task {_get(task, 'id', f'number {i}')}"
        data, made = _get(task, "data"), _get(task, "annotations") or _get(task, "completions") or []
        raw = _image(data)
        if raw is None or not isinstance(made, list):
            problems.error(file, where, "has no image in its data, or no list of annotations; export the tasks again")
            continue
        sound = [a for a in made if isinstance(_get(a, "result"), list) and not _get(a, "was_cancelled")]
        sound.sort(key=lambda a: not _get(a, "ground_truth"))
        bare += not sound
        if not sound:
            continue
        if len(sound) > 1:
            problems.warn(file, where, f"has {len(sound)} annotations; the first is read")
        for row in sound[0]["result"]:
            if not isinstance(row, dict):
                problems.error(file, where, f"a region is {kind_of(row)}, not an object; export the tasks again")
        regions = [row for row in sound[0]["result"] if isinstance(row, dict)]
        drawn_on = {str(row["to_name"]) for row in regions if row.get("to_name") and _kind(row) in _AREAS}
        if len(drawn_on) > 1:
            shown = ", ".join(sorted(drawn_on))
            problems.error(file, where, f"has regions of several images ({shown}); make a task of each image")
            continue
        whole += sum(str(row.get("type")) in _WHOLE for row in regions)
        stated = (drawn.size_of(row.get("original_height"), row.get("original_width")) for row in regions)
        size = next((s for s in stated if s is not None), None)
        own = ids.own(_get(data, "image_id", _get(task, "id")))
        yield Entry(file, where, _name(raw, folders), partial(_shapes, file, where, regions), size, own, split), regions
    if whole:
        problems.warn(file, "", f"{whole} labels of whole images are left out; masks and boxes are read")
    if bare:
        problems.warn(file, "", f"{bare} tasks have no annotation; they are left out, because they may be unlabelled")


def _image(data: Any) -> str | None:
    """The address of the image in the data of a task."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    named = (value for value in texts.values() if Path(value.partition("&")[0]).suffix.lower() in SUFFIXES)
    return texts.get("image") or next(named, None) or next(iter(texts.values()), None)


def _name(raw: str, folders: list[Path]) -> str:
    """The name of an image: an address, without what Label Studio puts before the name of an uploaded file."""
    path = raw.partition("?d=")[2] or raw
    forms = [path, unquote(path), unquote(path.partition("?")[0])]  # what follows may be the key to a storage
    forms += [re.sub(r"(^|/)[0-9a-f]{6,12}-(?=[^/]+$)", r"\1", form) for form in forms]
    return next((form for form in forms if any(isinstance(f, Path) for f in locate([form], folders))), path)


def _names(row: dict[str, Any], regions: Sequence[dict[str, Any]]) -> list[str]:
    """The classes of a region; those of a region drawn without labels are in another one with its id."""
    for other in (row, *(r for r in regions if r is not row and r.get("id") == row.get("id") is not None)):
        value = _get(other, "value")
        for key in (str(other.get("type")), "labels"):
            labels = _get(value, key)
            if key.endswith("labels") and isinstance(labels, list):
                return [label for label in labels if isinstance(label, str) and label]
    return []


def _shapes(
    file: Path, task: str, regions: Sequence[dict[str, Any]], size: Size, problems: Problems
) -> Iterator[Shape]:
    """The regions of an annotation that can be used."""
    for i, row in enumerate(regions, 1):
        where = f"region {i}"
        kind = _kind(row)
        try:
            if kind not in _AREAS | _NO_REGIONS:
                raise ValueError(f"is a {kind}, which is not read; draw a polygon, a brush or a rectangle")
            if kind in _AREAS:
                names = _names(row, regions)
                shape = _shape(where, row, kind, size, partial(problems.warn, file, f"{task}, {where}"))
                yield from (shape(label=name) for name in names or [""])
        except ValueError as error:
            problems.error(file, f"{task}, {where}", str(error))


def _kind(row: dict[str, Any]) -> str:
    """What a region is, without what it is labelled by."""
    return str(row.get("type")).removesuffix("labels")


def _shape(where: str, row: dict[str, Any], kind: str, size: Size, warn: Warn) -> "partial[Shape]":
    """Raises ``ValueError``."""
    value = row.get("value")
    if not isinstance(value, dict):
        raise ValueError("has no value; draw the region again")
    stated = drawn.size_of(row.get("original_height"), row.get("original_width"))
    if row.get("image_rotation") or (stated is not None and stated != size):
        raise ValueError("was drawn on a turned image, or on one of another size; draw it on the upright image")
    notes = _get(row.get("meta"), "text")
    own = ids.whole(row.get("id"))
    shape = partial(Shape, where, crowd=isinstance(notes, list) and "crowd" in notes, id=own)
    if kind == "brush":
        return partial(shape, mask=_brush(value, size, warn))
    if kind == "polygon":
        points = value.get("points")
        if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
            raise ValueError("points is not a list of [x, y]; draw the polygon again")
        flat = to_numbers([v for p in points for v in p], "the polygon").reshape(-1, 2)
        return partial(shape, outline=_pixels(flat, size).reshape(-1).tolist())
    keys = ("x", "y", "width", "height") if kind == "rectangle" else ("x", "y", "radiusX", "radiusY")
    numbers = [to_number(value.get(key), key) for key in keys]
    (x, y), (across, down) = _pixels(np.reshape(numbers, (2, 2)), size).tolist()
    if kind == "ellipse":
        degrees = to_number(value.get("rotation") or 0, "the rotation")
        return partial(shape, outline=drawn.ellipse(x, y, across, down, degrees))
    return partial(shape, box=turned((x, y, x + across, y + down), value.get("rotation"), warn, pivot=(x, y)))


def _pixels(percent: np.ndarray, size: Size) -> np.ndarray:
    """Percent of the image (N, 2) in pixels, rounded to a millionth of one: what was converted is exact again."""
    return np.round(percent * [size[1], size[0]] / 100, 6)


def _brush(value: dict[str, Any], size: Size, warn: Warn) -> Rle:
    """The pixels of a brush. Raises ``ValueError``."""
    if not isinstance(value.get("rle"), list):
        raise ValueError("the brush has no run lengths (rle); export the tasks as JSON again")
    packed = to_numbers(value["rle"], "the list of run lengths")
    if len(packed) == 0 or not ((packed >= 0) & (packed <= 255) & (packed == np.round(packed))).all():
        raise ValueError("the run lengths are no bytes; export the tasks again")
    runs = unpack(packed.astype(np.uint8), 4 * size[0] * size[1])
    # four values for a pixel, of which the last says whether it is painted
    starts, ends = (np.array([run[i] for run in runs if run[2]], np.int64) // 4 for i in (0, 1))
    starts, ends = starts[ends > starts], ends[ends > starts]
    if len(starts) == 0:
        raise ValueError("the brush covers no pixel; draw it again or remove it")
    top, bottom = int(starts.min()) // size[1], (int(ends.max()) - 1) // size[1] + 1
    if (bottom - top) * size[1] > _LARGEST:
        raise ValueError("the brush has more pixels than any image; export the tasks again")
    rows: Bool[np.ndarray, " n"] = np.zeros((bottom - top) * size[1], bool)
    for start, end in zip((starts - top * size[1]).tolist(), (ends - top * size[1]).tolist(), strict=True):
        rows[start:end] = True
    return drawn.placed(rows.reshape(bottom - top, size[1]), 0, top, size, warn)


def unpack(packed: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The runs (start, end, value) of ``count`` packed values. Raises ``ValueError``.

    32 bits of the count, 5 of the bits of a value less 1, four times 4 of the bits of a length less 1. Then, for each
    run, a bit that is 1 where one value is repeated, 2 bits that choose one of the four, the length less 1, and the
    value, or as many values as the length says.
    """
    bits = (np.unpackbits(packed) + ord("0")).tobytes().decode("ascii")
    place = 0

    def take(number: int) -> int:
        nonlocal place
        place += number
        if place > len(bits):
            raise ValueError("the run lengths end too early; export the tasks again")
        return int(bits[place - number : place], 2)

    if (stated := take(32)) != count:
        raise ValueError(f"the run lengths are of {stated} values, the image has {count}; export the tasks again")
    word = take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    runs, start = [], 0
    while start < count:
        repeated = take(1)
        end = start + 1 + take(lengths[take(2)])
        if end > count:
            raise ValueError("the run lengths are longer than the image; export the tasks again")
        if repeated:
            runs.append((start, end, take(word)))
        else:
            runs += [(i, i + 1, take(word)) for i in range(start, end)]
        start = end
    return runs


def _get(row: Any, key: str, otherwise: Any = None) -> Any:
    return row.get(key, otherwise) if isinstance(row, dict) else otherwise
