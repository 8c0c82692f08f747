"""YOLO text labels: ``data.yaml`` with names and folders, one ``.txt`` per image, one line per object.

A line is ``class cx cy w h`` (a box, no mask) or ``class x1 y1 x2 y2 ...`` (a polygon), all coordinates as fractions of
the image's width and height. The text of ``images/a.jpg`` is ``labels/a.txt``. An image without text has no objects.
Where the yaml file has a ``kpt_shape``, a line is a box and the keypoints of the object, and the box is read.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS
from maskkit.data.images import find_images, image_size
from maskkit.data.places import locate
from maskkit.data.records import Annotation, Record, extent, number
from maskkit.data.rules import Problems, Warn, sound_box, sound_polygons, to_numbers
from maskkit.data.text_files import read_lines, read_yaml
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "YOLO: data.yaml with names, train and val; images/train/*.jpg and labels/train/*.txt"


def recognise(path: Path) -> bool:
    """Whether it is a file, or a folder with a yaml file that names classes."""
    return path.is_file() or _yaml(path) is not None


def splits(path: Path) -> list[str]:
    """Names of the splits that the yaml file points to."""
    return list(folders(path))


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a ``data.yaml``, or of a folder with one; ids are numbered in the order of the images' paths.

    Class ids are the file's, from 0. Raises `DataError` when the yaml file cannot be read or has no such split.
    """
    file = path if path.is_file() else _yaml(path)
    if file is None:
        raise DataError(f"{path}: has no yaml file with names; YOLO labels need one that lists the classes")
    parts = folders(file)
    if split is not None and split not in parts:
        raise DataError(f"{file}: has no {split} split; it has {', '.join(parts) or 'none'}")
    content, problems = read_yaml(file), Problems()
    names, keypoints = _names(content, file), _keypoints(content, file)
    if keypoints:
        problems.warn(file, "", "the labels have keypoints, which are not read; objects are boxes without masks")
    return dataset(path, names, parts, split, problems, file, keypoints)


def dataset(
    path: Path,
    names: tuple[str, ...],
    parts: Mapping[str, list[Path]],
    split: str | None,
    problems: Problems,
    file: Path | None = None,
    keypoints: int = 0,
) -> Dataset:
    """The images of a split, or of all ``parts``, which are folders or list files by split; ``file`` describes them.

    ``keypoints`` is how many numbers of keypoints follow the box of an object.
    """
    homes = roots(file) if file is not None else []
    file = file or path
    chosen = [split] if split else list(parts)
    images = sorted({image for name in chosen for source in parts[name] for image in _images(source, homes, problems)})
    records: list[Record] = []
    owners: dict[Path, Path] = {}
    bare = 0
    for i, image in enumerate(images, 1):
        try:
            record = Record(i, image, image_size(image), [])
        except DataError as error:
            problems.error(image, "", str(error))
            continue
        text = _label_file(image)
        bare += not text.is_file()
        if (owner := owners.setdefault(text, image)) != image and text.is_file():
            problems.error(image, "", f"has the labels of {owner.name}, {text.name}; rename one of them and its labels")
            continue
        try:
            record.annotations.extend(_objects(text, record.size, len(names), keypoints, problems))
        except DataError as error:
            problems.error(text, "", f"{error}; its image is left out")
            continue
        records.append(record)
    if not images:
        problems.error(file, "", f"no image in {', '.join(chosen) or 'any split'}")
    if bare:
        problems.warn(file, "", f"{bare} of {len(images)} images have no .txt; they are read as images without objects")
    _note_orphans([source for sources in parts.values() for source in sources], owners, problems)
    if _turned_boxes(records):
        problems.warn(
            file,
            "",
            "every object has four corners with right angles; if these are oriented boxes (YOLO-OBB), they are "
            "read as masks with that outline, which cover more than the object",
        )
    return Dataset(number(records), Categories(names, tuple(range(len(names)))), path, "yolo", problems)


def _note_orphans(sources: list[Path], owners: Mapping[Path, Path], problems: Problems) -> None:
    """Warn of label files without an image, where all images of the data set are in folders."""
    if not all(source.is_dir() for source in sources):
        return
    every = [image for source in sources for image in find_images(source, recursive=True)]
    known = owners.keys() | {_label_file(image) for image in every}
    for place in sorted({text.parent for text in owners}):
        texts = [text for text in sorted(place.glob("*.txt")) if text not in known and _has_labels(text)]
        if texts:
            shown = ", ".join(text.name for text in texts[:5]) + (", ..." if len(texts) > 5 else "")
            problems.warn(place, "", f"{len(texts)} label files have no image: {shown}; add the images or remove them")


def _has_labels(text: Path) -> bool:
    """Whether the first line of a file looks like an object: other texts lie in such folders too."""
    try:
        words = next(iter(read_lines(text, lambda _: None)), "").split()
        return len(words) >= 5 and all(np.isfinite(to_numbers(words, "")))
    except (DataError, ValueError):
        return False


def _turned_boxes(records: list[Record]) -> bool:
    """Whether all objects, ten or more, are rectangles and at least one of them is turned."""
    shapes = [a.segmentation for r in records for a in r.annotations]
    parts = [np.reshape(s[0], (-1, 2)) for s in shapes if isinstance(s, list) and len(s) == 1 and len(s[0]) == 8]
    if len(parts) < max(len(shapes), 10):
        return False
    sides = np.roll(parts, -1, 1) - np.asarray(parts)  # (N, 4, 2)
    lengths = np.linalg.norm(sides, axis=2)
    cosines = np.abs((sides * np.roll(sides, -1, 1)).sum(2)) / np.maximum(lengths * np.roll(lengths, -1, 1), 1e-9)
    turned = np.abs(sides).min(2).max(1) > 0.05 * lengths.max(1)
    return bool((cosines < 0.02).all(1).mean() > 0.95 and turned.any())


def _yaml(folder: Path) -> Path | None:
    """The yaml file of a data set: ``data.yaml``, or the first other one with ``names``."""
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    for file in sorted(folder.glob("*.y*ml")):
        try:
            if "names" in read_yaml(file):
                return file
        except DataError:
            continue  # a yaml file of something else
    return None


def _names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != {str(i) for i in range(len(names))}:
            keys = ", ".join(list(names)[:20])
            raise DataError(f"{file}: the keys of names are {keys}; they count 0, 1, 2, ... without a gap")
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names lists no class; write them as a list or as 0: name")
    if unnamed := [i for i, n in enumerate(names) if not isinstance(n, str) or not n]:
        raise DataError(f"{file}: class {unnamed[0]} of names has no name; write it as text")
    count = content.get("nc", "")
    if isinstance(count, str) and count.isdecimal() and int(count[:9]) != len(names):
        raise DataError(f"{file}: nc is {count[:9]}, but names lists {len(names)} classes; correct one of them")
    return tuple(names)


def _keypoints(content: dict[str, Any], file: Path) -> int:
    """How many numbers each object has for its keypoints. Raises `DataError`."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(n in map(str, range(1, 1000)) for n in shape):
        raise DataError(f"{file}: kpt_shape is not [number of keypoints, 2 or 3]; correct it")
    return int(shape[0]) * int(shape[1])


def roots(path: Path) -> list[Path]:
    """Where the entries of the yaml file begin: at the ``path`` in it, which may be any folder, and beside it."""
    file = path if path.is_file() else _yaml(path)
    if file is None:
        return [path]
    return [file.parent / entry for entry in (*_entries(read_yaml(file), "path", file)[:1], "")]


def folders(path: Path) -> dict[str, list[Path]]:
    """The existing folders or list files of images by split."""
    file = path if path.is_file() else _yaml(path)
    if file is None:
        return {}
    content = read_yaml(file)
    places = roots(file)
    found: dict[str, list[Path]] = {}
    for split, keys in SPLITS.items():
        entries = next((e for key in keys if (e := _entries(content, key, file))), [])
        sources = [_locate(entry, places) for entry in entries]
        lacking = [v for v in sources if isinstance(v, str)]
        if lacking and split != "test":
            raise DataError(f"{file}: {split} points to {', '.join(lacking)}, which does not exist; correct the path")
        if sources and not lacking:
            found[split] = [s for s in sources if isinstance(s, Path)]
    return found


def _entries(content: dict[str, Any], key: str, file: Path) -> list[str]:
    """The paths under a key of the yaml file: one or a list of them, none for nothing or null."""
    value = content.get(key, "")
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{file}: {key} is neither a path nor a list of paths; correct it")
    return [entry for entry in entries if entry not in ("", "~", "null", "Null", "NULL")]


def _locate(value: str, roots: list[Path]) -> Path | str:
    """The path that an entry of the yaml file means, or the entry itself when nothing is there."""
    # Roboflow writes ../train/images for train/images beside the file; a folder of that name above is another data set
    forms = (value, value.replace("\\", "/"))  # as it is written on Windows
    entries = dict.fromkeys(entry for form in forms for entry in (form, form.removeprefix("../")))
    places = [Path(os.path.normpath(root / entry)) for entry in entries for root in roots]
    there = [place for place in places if os.path.exists(place)]  # False, not an error, for an impossible name
    homes = [os.path.normpath(root) for root in roots]
    return next((p for p in there if any(p.is_relative_to(home) for home in homes)), there[0] if there else value)


def _images(source: Path, homes: Sequence[Path], problems: Problems) -> list[Path]:
    """Images of a folder, or the images in a list file, whose names begin beside it or in one of ``homes``."""
    if source.is_dir():
        return find_images(source, recursive=True)
    try:
        lines = [line.strip() for line in read_lines(source, partial(problems.warn, source, ""))]
    except DataError as error:
        raise DataError(f"{source}: is neither a folder nor a list of images; correct the yaml file") from error
    names = list(dict.fromkeys(os.path.normpath(line) for line in lines if line))
    found = []
    for name, image in zip(names, locate(names, dict.fromkeys((source.parent, *homes))), strict=True):
        if isinstance(image, str):
            problems.error(source, name, image)
        else:
            found.append(Path(os.path.normpath(image)))
    return found


def _label_file(image: Path) -> Path:
    """The text file of an image: beside it, or else in ``labels/`` for ``images/``."""
    if (beside := image.with_suffix(".txt")).is_file():
        return beside
    return label_folder(image.parent) / image.with_suffix(".txt").name


def label_folder(images: Path) -> Path:
    """The folder of the texts for a folder of images: ``labels/`` for ``images/``, the innermost of that name."""
    parts = list(images.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def _objects(text: Path, size: tuple[int, int], classes: int, keypoints: int, problems: Problems) -> list[Annotation]:
    """The objects of an image, of which those that cannot be used are noted. Raises `DataError`."""
    lines = read_lines(text, partial(problems.warn, text, "")) if text.is_file() else []
    objects = []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            objects.append(_object(line, size, classes, partial(problems.warn, text, f"line {i}"), keypoints))
        except ValueError as error:
            problems.error(text, f"line {i}", str(error))
    return objects


def _object(line: str, size: tuple[int, int], classes: int, warn: Warn, keypoints: int = 0) -> Annotation:
    values = to_numbers(line.split(), "the line")
    if "_" in line:
        raise ValueError("has an underscore in a number")  # Python takes 1_0 for 10
    if keypoints and len(values) != 5 + keypoints:
        raise ValueError(f"{len(values)} values; a box has 5, and by kpt_shape its keypoints {keypoints}")
    values = values[:5] if keypoints else values
    label = values[0]
    if not (label.is_integer() and 0 <= label < classes):
        raise ValueError(f"class {label:g} is not one of the {classes} that the yaml file names (0 to {classes - 1})")
    if len(values) < 5 or len(values) % 2 == 0:
        raise ValueError(f"{len(values)} values; a box has 5, a polygon 7 or more and an odd number")
    if not np.isfinite(values).all():
        raise ValueError("has values that are no numbers (NaN or infinite)")
    if values[1:].max() > 2:
        raise ValueError(
            f"the value {values[1:].max():g} is not a fraction of the image; divide x by its width, y by its height"
        )
    height, width = size
    # rounded to a millionth of a pixel, so that coordinates converted from pixels are exact again
    pixels = np.round(values[1:].reshape(-1, 2) * [width, height], 6)
    if len(values) == 5:
        (cx, cy), (w, h) = pixels.tolist()
        return Annotation(0, int(label), sound_box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), size, warn))
    polygons = sound_polygons([pixels.reshape(-1)], size, warn)
    return Annotation(0, int(label), extent(polygons), polygons)
