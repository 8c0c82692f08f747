"""Image tags: images with classes alone, given by a table or by the folders of the images.

Layouts: ``tags.csv``, or one table per split (``train.csv``, ``val.csv``), whose rows are an image and its classes
(``beach.jpg,dog,person``), or 0 and 1 under the names of the classes in the first row; and one folder of images for
each class, ``cat/`` beside ``dog/``, with or without ``train/`` and ``val/`` above them.
"""

from functools import partial
from pathlib import Path

from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, image_folders
from maskkit.data.formats import boxes
from maskkit.data.images import find_images, image_size
from maskkit.data.label_map import ImageTags
from maskkit.data.places import locate
from maskkit.data.records import Record
from maskkit.data.rules import Problems
from maskkit.data.text_files import read_table
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "Image tags: tags.csv or train.csv (image,class,class,...), or a folder of images for each class"

_WHOLE = "tags.csv"
_HEADS = {"image", "file", "filename", "file_name", "path"}
_NO_TAGS = {"width", "height", "depth", "size", "date", "source", "split", "id", "url", "license"}
_OTHER_FOLDERS = {"images", "masks", "labels", "annotations", "jpegimages"}.union(*SPLITS.values())


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
    return file.is_file() and not boxes.is_table(file)


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
    inside = [f for f in sorted(folder.iterdir()) if f.is_dir() and f.name.lower() not in _OTHER_FOLDERS]
    classes = [f for f in inside if find_images(f)]
    return classes if len(classes) > 1 else []


def _folders(folder: Path) -> list[Row]:
    return [(image, {f.name}) for f in class_folders(folder) for image in find_images(f)]


def _table(file: Path, problems: Problems) -> list[Row]:
    """The rows of a table whose image exists; the others are reported to ``problems``."""
    rows = read_table(file, partial(problems.warn, file, ""))
    files = locate([row[0] for row in rows], image_folders(file))
    head: list[str] = []
    if rows and (rows[0][0].lower() in _HEADS or ("." not in rows[0][0] and isinstance(files[0], str))):
        head, rows, files = rows[0][1:], rows[1:], files[1:]
    ticked = bool(head) and all(cell in ("0", "1") for row in rows for cell in row[1:])
    if not ticked and (others := [i for i, name in enumerate(head, 1) if name.lower() in _NO_TAGS]):
        problems.warn(file, "", f"the columns {', '.join(head[i - 1] for i in others)} are no classes and are not read")
        rows = [[cell for i, cell in enumerate(row) if i not in others] for row in rows]
    found = []
    for (name, *cells), image in zip(rows, files, strict=True):
        if isinstance(image, str):
            problems.error(file, name, image)
        elif ticked and len(cells) != len(head):
            problems.error(file, name, f"has {len(cells)} values under {len(head)} classes; complete the row")
        else:
            chosen = [tag for tag, cell in zip(head, cells, strict=True) if cell == "1"] if ticked else cells
            found.append((image, {tag for tag in chosen if tag}))
    return found
