"""Image tags: images with classes alone, given by a table or by the folders of the images.

Layouts: ``tags.csv``, or one table per split (``train.csv``, ``val.csv``), whose rows are an image and its classes
(``beach.jpg,dog,person``), or 1 and 0 (true and false, 1 and -1) under the names of the classes in the first row; and
one folder of images for each class, ``cat/`` beside ``dog/``, with or without ``train/`` and ``val/`` above them.
"""

import re
from functools import partial
from pathlib import Path

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, image_folders
from maskkit.data.formats import boxes, foreign
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import ImageTags
from maskkit.data.records import Record
from maskkit.data.rules import Problems
from maskkit.data.text_files import read_table
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "Image tags: tags.csv or train.csv (image,class,class,...), or a folder of images for each class"

_WHOLE = "tags.csv"
_HEADS = {"image", "file", "filename", "file_name", "path"}
_NO_TAGS = {"width", "height", "depth", "size", "date", "source", "split", "id", "url", "license"}
_CLASSES = {"class", "classes", "label", "labels", "tag", "tags", "category", "categories", "target"}
"""Names of columns that hold names of classes."""
_YES, _NO = {"1", "1.0", "true", "yes", "x"}, {"0", "0.0", "-1", "-1.0", "false", "no", ""}
_EITHER = _YES | _NO
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", re.IGNORECASE)
_NUMBERS = re.compile(r"[\s\[(]*-?[0-9][0-9.]*([\s,;]+-?[0-9][0-9.]*)+[\s\])]*")
"""Several numbers in a cell: a box, or run lengths."""
_BOX = 4
"""So many columns of numbers are a box."""
_OTHER_FOLDERS = {"images", "masks", "labels", "annotations", "jpegimages"}.union(*SPLITS.values())
_PARTS = {"training", "trainval", "testing", "images", "img", "imgs"}.union(*SPLITS.values())
"""Words in the names of folders of a split, like ``train_images`` and ``val2017``."""
_OF_PARTS = _PARTS | {"image", "mask", "masks", "label", "labels", "data", "set", "gt"}


def find(folder: Path) -> dict[str | None, Path]:
    """Tables, or folders of class folders, by split; None means all images."""
    found: dict[str | None, Path] = {}
    for split, names in SPLITS.items():
        places = [p for name in names for p in (folder / f"{name}.csv", folder / name)]
        if place := next((p for p in places if _is_table(p) or class_folders(p)), None):
            found[split] = place
    if not found and (_is_table(folder / _WHOLE) or class_folders(folder)):
        found[None] = folder / _WHOLE if _is_table(folder / _WHOLE) else folder
    return found


def recognise(path: Path) -> bool:
    """Whether the folder has tables of tags or class folders, or the file is such a table."""
    return _is_table(path) if path.is_file() else bool(find(path))


def _is_table(file: Path) -> bool:
    return file.is_file() and not boxes.is_table(file) and foreign.of_file(file) is None


def splits(folder: Path) -> list[str]:
    """Names of the splits that the folder has."""
    return [split for split in find(folder) if split is not None]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a table, or of a folder's ``split`` (all of them for None), numbered from 1.

    Classes are in alphabetical order, the same for every split; their ids are 1..K. Raises `DataError`.
    """
    found = {None: path} if path.is_file() else find(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; add {split}.csv, or {split}/ with a folder for each class")
    problems = Problems()
    rows = {
        key: _table(place, problems if split in (key, None) else Problems()) if place.is_file() else _folders(place)
        for key, place in found.items()
    }
    categories = Categories.of(sorted({tag for part in rows.values() for _, tags in part for tag in tags}))
    numbers = {name: i for i, name in enumerate(categories.names)}
    records = []
    for image, tags in (row for key, part in rows.items() if split in (key, None) for row in part):
        try:
            known = ImageTags(frozenset(numbers[tag] for tag in tags))
            records.append(Record(len(records) + 1, image, image_size(image), [], known))
        except DataError as error:
            problems.error(image, "", str(error))
    return Dataset(records, categories, path, "tags", problems)


Row = tuple[Path, set[str]]
"""An image and the names of its classes."""


def class_folders(folder: Path) -> list[Path]:
    """Folders in ``folder`` with the images of one class each; none when there are fewer than two."""
    if not folder.is_dir():
        return []
    inside = [f for f in sorted(folder.iterdir()) if f.is_dir() and not _is_part(f.name.lower())]
    classes = [f for f in inside if find_images(f)]
    return classes if len(classes) > 1 else []


def _is_part(name: str) -> bool:
    """Whether a folder is called as a part of a data set is, not as a class."""
    words = set(re.findall(r"[a-z]+", name))
    return name in _OTHER_FOLDERS or bool(words & _PARTS and words <= _OF_PARTS)


def _folders(folder: Path) -> list[Row]:
    return [(image, {f.name}) for f in class_folders(folder) for image in find_images(f)]


def _table(file: Path, problems: Problems) -> list[Row]:
    """The images of a table that exist; others are reported to ``problems``. Rows of one image add up.

    Raises `DataError` where columns have numbers that are no names of classes.
    """
    rows, folders = read_table(file, partial(problems.warn, file, "")), image_folders(file)
    if rows and len(rows[0]) > 1 and not rows[0][0]:
        rows = [row[1:] for row in rows]  # pandas writes the numbers of rows in front
    head: list[str] = []
    if rows and _is_head(rows[0][0], folders):
        head, rows = _read_columns(file, rows[0][1:], rows[1:], problems)
    ticks = _ticks(head, rows)
    if ticks is None:
        _refuse_numbers(file, head, rows)
    tags: dict[str, set[str]] = {}
    for name, *cells in rows:
        if ticks is not None and len(cells) != len(head):
            problems.error(file, name, f"has {len(cells)} values under {len(head)} classes; complete the row")
            continue
        chosen = cells if ticks is None else [tag for tag, c in zip(head, cells, strict=True) if c.lower() in ticks]
        tags.setdefault(name, set()).update(tag for tag in chosen if tag)
    found = []
    for (name, chosen), image in zip(tags.items(), boxes.locate_images(list(tags), folders), strict=True):
        if isinstance(image, str):
            problems.error(file, name, image)
        else:
            found.append((image, chosen))
    return found


def _is_head(first: str, folders: list[Path]) -> bool:
    """Whether the first cell of a table is the name of a column, not that of an image."""
    return first.lower() in _HEADS or ("." not in first and isinstance(boxes.locate_images([first], folders)[0], str))


def _read_columns(
    file: Path, head: list[str], rows: list[list[str]], problems: Problems
) -> tuple[list[str], list[list[str]]]:
    """Names and rows without the columns that are not of classes: all others, where one is called so."""
    named = [name.lower() in _CLASSES for name in head]
    others = [i for i, name in enumerate(head, 1) if (not named[i - 1] if any(named) else _is_other(name, i, rows))]
    if others:
        problems.warn(file, "", f"the columns {', '.join(head[i - 1] for i in others)} are no classes and are not read")
    kept = [name for i, name in enumerate(head, 1) if i not in others]
    return kept, [[cell for i, cell in enumerate(row) if i not in others] for row in rows]


def _is_other(name: str, column: int, rows: list[list[str]]) -> bool:
    """Whether a column is known to be of something else, and has no ticks."""
    return name.lower() in _NO_TAGS and not all(row[column].lower() in _EITHER for row in rows if len(row) > column)


def _ticks(head: list[str], rows: list[list[str]]) -> set[str] | None:
    """The cells that mean that an image has the class of the column; None where cells are names of classes.

    Beside 0, -1 is neither yes nor no, and so a number.
    """
    cells = {cell.lower() for row in rows for cell in row[1:]}
    named = any(name.lower() in _CLASSES for name in head)
    doubtful = bool(cells & {"-1", "-1.0"} and cells & {"0", "0.0"})
    return None if not head or named or doubtful or not cells <= _EITHER else _YES


def _refuse_numbers(file: Path, head: list[str], rows: list[list[str]]) -> None:
    """Raise `DataError` where classes would be called by numbers that count or measure something.

    A single column of whole numbers has the numbers of classes.
    """
    count = max(map(len, rows), default=1) - 1
    columns = {i: [row[i] for row in rows if len(row) > i and row[i]] for i in range(1, count + 1)}
    columns = {i: cells for i, cells in columns.items() if cells}
    numeric = [i for i, cells in columns.items() if all(map(_NUMBER.fullmatch, cells))]
    measured = [i for i in numeric if not all(float(cell).is_integer() for cell in columns[i])]
    measured += [i for i, cells in columns.items() if all(map(_NUMBERS.fullmatch, cells))]
    if measured or (head and count > 1 and numeric) or len(numeric) >= _BOX:
        names = ", ".join(head[i - 1] if i <= len(head) else f"number {i + 1}" for i in measured or numeric)
        raise DataError(
            f"{file}: the columns {names} have numbers, which are no classes; for tags write 1 and 0 under the name of "
            "each class, for boxes name the columns filename, class, xmin, ymin, xmax, ymax"
        )
