"""Tables of boxes: a csv with one box a row, as TensorFlow's, RetinaNet's, Roboflow's and Open Images' tools write it.

The first row names the columns: the image (``filename``, ``path``, ``ImageID``, ...), the class (``class``, ``label``,
``LabelName``) and four corners (``xmin ymin xmax ymax``, ``x1 y1 x2 y2``, ``left top right bottom``), corner and size
(``x y w h``) or centre and size (``x_center y_center width height``), in any order; otherwise ``width`` and ``height``
are the size of the image. A table without such a row is RetinaNet's: ``path,x1,y1,x2,y2,class``, with empty cells for
an image without objects. Coordinates are pixels, counted from 0 at the edge of the image, or fractions of it, as in
Open Images: where no value is above 1, or none above 2 and not all are whole. Objects are boxes without masks.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.files import SPLITS, image_folders
from maskkit.data.images import image_size
from maskkit.data.places import locate
from maskkit.data.records import Annotation, Record, number
from maskkit.data.rules import Problems, Warn, brief, counted, is_set, sound_box, stated_size, to_number
from maskkit.data.text_files import read_table
from maskkit.errors import DataError
from maskkit.prediction import Categories

LAYOUT = "Boxes in a table: train.csv or annotations.csv (filename,width,height,class,xmin,ymin,xmax,ymax)"

_WHOLE = ("annotations.csv", "_annotations.csv", "labels.csv", "boxes.csv")
_IMAGE = ("filename", "file_name", "path", "image_path", "image", "imageid", "image_id", "image_name", "img", "file")
_CLASS = ("class", "class_name", "classname", "label", "labelname", "label_name", "category", "category_name", "name")
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("min_x", "min_y", "max_x", "max_y"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
    ("xtl", "ytl", "xbr", "ybr"),
    ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
    ("bbox_xmin", "bbox_ymin", "bbox_xmax", "bbox_ymax"),
)
_CENTRE_AND_SIZE = tuple(
    (*centre, *sides)
    for centre in (("x_center", "y_center"), ("xcenter", "ycenter"), ("center_x", "center_y"), ("cx", "cy"))
    for sides in (("width", "height"), ("w", "h"))
)
_CORNER_AND_SIZE = (
    *((*corner, "w", "h") for corner in (("x", "y"), ("xmin", "ymin"), ("x_min", "y_min"), ("left", "top"))),
    *((*corner, "width", "height") for corner in (("x", "y"), ("xmin", "ymin"), ("x_min", "y_min"), ("left", "top"))),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
)
_FORMS = {"corners": _CORNERS, "centre": _CENTRE_AND_SIZE, "corner": _CORNER_AND_SIZE}
"""Names of the four columns of a box, by what they are; the last two have its size."""
_SIGNS = {"xmin", "x_min", "bbox_x", "bbox", "bounding_box", "region_shape_attributes"}
"""Names of columns that no class has."""
_BEGINNING = 1 << 16
"""Bytes of a file by which it is recognised."""
_NUMBERS = 20  # rows that are looked at to recognise a table without names of columns


@dataclass(frozen=True)
class _Columns:
    """Where a row has what."""

    image: int
    label: int | None
    """None: there is one class."""
    box: tuple[int, ...]
    form: str
    """What the box is: one of `_FORMS`."""
    size: tuple[int, int] | None
    """Height and width of the image."""
    group: int | None
    """1 for a box of several objects."""


def find(path: Path) -> dict[str | None, Path]:
    """The tables of boxes by split; None means all images. A file is the table itself."""
    if path.is_file():
        return {None: path}
    found: dict[str | None, Path] = {}
    for split, names in SPLITS.items():
        places = [
            path / form.format(name)
            for name in names
            for form in ("{}.csv", "{}_labels.csv", "{}_annotations.csv", "{}/_annotations.csv", "{}/annotations.csv")
        ]
        if table := next(filter(is_table, places), None):
            found[split] = table
    whole = next(filter(is_table, (path / name for name in _WHOLE)), None)
    return found or ({None: whole} if whole else {})


def is_table(file: Path) -> bool:
    """Whether a file is a table of boxes, by the names of its columns or by its first rows."""
    if not file.is_file():
        return False
    try:
        rows = read_table(file, lambda text: None, _BEGINNING)
    except DataError:
        return False
    names = set(_names(rows[0])) if rows else set()
    boxed = any(set(box) <= names for form in _FORMS.values() for box in form)
    return boxed or bool(names & _SIGNS) or _nameless(rows)


def recognise(path: Path) -> bool:
    """Whether the folder has tables of boxes, or the file is one."""
    return is_table(path) if path.is_file() else bool(find(path))


def splits(path: Path) -> list[str]:
    """Names of the splits that the folder has; none for a file."""
    return [split for split in find(path) if split is not None]


def read(path: Path, split: str | None = None) -> Dataset:
    """The images of a table, or of a folder's ``split`` (all of them for None), in the order of the table, from 1.

    Classes are in alphabetical order, the same for every split; their ids are 1..K. Raises `DataError` when the columns
    are not understood.
    """
    found = find(path)
    if split is not None and split not in found:
        raise DataError(f"{path}: has no {split} split; add {split}.csv")
    tables = {key: _Table.of(file) for key, file in found.items()}
    categories = Categories.of(sorted({name for table in tables.values() for name in table.classes()}))
    chosen = [table for key, table in tables.items() if split in (key, None)]
    problems = Problems(p for table in chosen for p in table.problems)
    records: list[Record] = []
    for table in chosen:
        records += table.records(categories, len(records) + 1, problems)
    return Dataset(number(records), categories, path, "csv", problems)


def image_places(table: Path) -> list[Path]:
    """Folders that may hold the images of a table."""
    words = [name for names in SPLITS.values() for name in names if table.stem.startswith(f"{name}_")]
    split = [table.parent / sub for name in words for sub in (f"images/{name}", name, f"{name}/images")]
    return [*(folder for folder in split if folder.is_dir()), *image_folders(table)]


@dataclass(frozen=True)
class _Table:
    """The rows of one file."""

    file: Path
    columns: _Columns
    rows: list[tuple[int, list[str]]]
    """With the number of each row, the one of names being 1."""
    problems: Problems

    @classmethod
    def of(cls, file: Path) -> "_Table":
        """Raises `DataError` when the columns are not understood."""
        problems = Problems()
        rows = read_table(file, partial(problems.warn, file, ""))
        nameless = _nameless(rows)
        columns = (
            _Columns(0, 5, (1, 2, 3, 4), "corners", None, None) if nameless else _columns(file, rows[0] if rows else [])
        )
        names, label = _descriptions(file), columns.label
        for row in rows:
            if label is not None and len(row) > label:
                row[label] = names.get(row[label], row[label])
        return cls(file, columns, list(enumerate(rows, 1))[0 if nameless else 1 :], problems)

    def classes(self) -> set[str]:
        """Names of all classes."""
        label = self.columns.label
        return {"object"} if label is None else {row[label] for _, row in self.rows if len(row) > label} - {""}

    def records(self, categories: Categories, first: int, problems: Problems) -> list[Record]:
        """The images, numbered from ``first``, with their boxes."""
        by_image: dict[str, list[tuple[int, list[str]]]] = defaultdict(list)
        columns = self.columns
        for i, row in self.rows:
            if len(row) <= max(columns.image, columns.label or 0, *columns.box):
                problems.error(self.file, f"row {i}", f"has only {len(row)} cells; complete it")
            else:
                by_image[row[columns.image]].append((i, row))
        fractions = self._fractions()
        if fractions and columns.group is None:
            problems.warn(self.file, "", "no coordinate is above 2; they are read as fractions of the image")
        records, bare = [], 0
        for (name, rows), path in zip(
            by_image.items(), locate_images(list(by_image), image_places(self.file)), strict=True
        ):
            if isinstance(path, str):
                problems.error(self.file, name or f"row {rows[0][0]}", path)
                continue
            try:
                sizes = {size for _, row in rows if (size := _stated(row, columns)) is not None}
                if len(sizes) > 1:
                    raise DataError("the rows of the image state several sizes of it; correct them")
                size = sizes.pop() if sizes else image_size(path)
            except DataError as error:
                problems.error(path, "", str(error))
                continue
            scale = (size[1], size[0]) * 2 if fractions else (1, 1, 1, 1)
            objects = []
            for i, row in rows:
                if not any(row[at] for at in columns.box):
                    bare += columns.label is not None and bool(row[columns.label])
                    continue  # an image without objects
                try:
                    warn = partial(problems.warn, self.file, f"row {i}")
                    objects.append(_object(row, columns, scale, size, categories, warn))
                except ValueError as error:
                    problems.error(self.file, f"row {i}", str(error))
            records.append(Record(first + len(records), path, size, objects))
        if bare:
            problems.warn(self.file, "", f"{counted(bare, 'row')} with a class and no box: read as no object")
        if not self.rows:
            problems.error(self.file, "", "has no row; export the annotations again")
        return records

    def _fractions(self) -> bool:
        """Whether no coordinate is above 1, or none above 2, and they are no whole numbers."""
        cells = (row[at] for _, row in self.rows for at in self.columns.box if len(row) > at and row[at])
        values = [float(cell) for cell in cells if _is_number(cell)]
        return bool(values) and (max(values) <= 1 or (max(values) <= 2 and not all(v.is_integer() for v in values)))


def _object(
    row: Sequence[str],
    columns: _Columns,
    scale: Sequence[float],
    size: tuple[int, int],
    categories: Categories,
    warn: Warn,
) -> Annotation:
    """The box of a row. Raises ``ValueError``."""
    x1, y1, x2, y2 = (to_number(row[at], "the box") * s for at, s in zip(columns.box, scale, strict=True))
    if columns.form == "corner":
        x2, y2 = x1 + x2, y1 + y2
    elif columns.form == "centre":
        x1, y1, x2, y2 = x1 - x2 / 2, y1 - y2 / 2, x1 + x2 / 2, y1 + y2 / 2
    name = "object" if columns.label is None else row[columns.label]
    if not name:
        raise ValueError("has no class; name it")
    crowd = columns.group is not None and len(row) > columns.group and is_set(row[columns.group])
    return Annotation(0, categories.names.index(name), sound_box((x1, y1, x2, y2), size, warn), crowd=crowd)


def _columns(file: Path, head: Sequence[str]) -> _Columns:
    """Where a table has what, by the names of its columns. Raises `DataError`."""
    names = _names(head)

    def at(*known: str) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    image, label = at(*_IMAGE), at(*_CLASS)
    boxes = ((form, box) for form, known in _FORMS.items() for box in known if set(box) <= set(names))
    form, box = next(boxes, ("", None))
    if "region_shape_attributes" in names:
        raise DataError(f"{file}: this is a VIA (VGG Image Annotator) table, which is not read: export it as COCO")
    if image is None or box is None:
        raise DataError(
            f"{file}: the columns {brief(', '.join(head))} are not understood; name them "
            "filename, class, xmin, ymin, xmax, ymax"
        )
    sides = ("height", "width")
    size = tuple(names.index(s) for s in sides) if set(sides) <= set(names) - set(box) else None
    return _Columns(image, label, tuple(map(names.index, box)), form, size, at("isgroupof"))  # type: ignore[arg-type]


def _descriptions(file: Path) -> dict[str, str]:
    """Names of Open Images' classes, which are like ``/m/01g317``, where its list of them lies beside the table."""
    found = next((f for f in sorted(file.parent.glob("*class-descriptions*.csv")) if f.is_file()), None)
    rows = read_table(found, lambda text: None) if found is not None else []
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[1]}


def _names(head: Sequence[str]) -> list[str]:
    return [cell.lstrip("#").strip().lower().replace(" ", "_") for cell in head]


def _nameless(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first rows are RetinaNet's: an image, four numbers (or four empty cells), a class."""
    if not rows or any(len(row) != 6 for row in rows[:_NUMBERS]):
        return False
    boxes = [row[1:5] for row in rows[:_NUMBERS] if any(row[1:])]
    sound: Callable[[Sequence[str]], bool] = lambda box: all(_is_number(cell) for cell in box)  # noqa: E731
    # 0 and 1 in all cells are ticks of tags, not boxes
    return bool(boxes) and all(map(sound, boxes)) and any(cell not in ("0", "1") for box in boxes for cell in box)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _stated(row: Sequence[str], columns: _Columns) -> tuple[int, int] | None:
    """(H, W) of the image as the row has it."""
    if columns.size is None or len(row) <= max(columns.size):
        return None
    height, width = (float(row[at]) if _is_number(row[at]) else None for at in columns.size)
    return stated_size(ids.whole(height), ids.whole(width))


def locate_images(names: list[str], folders: list[Path]) -> list[Path | str]:
    """The files of images; a name without an ending, as Open Images has, may be that of a JPEG or PNG."""
    files = locate(names, folders)
    taken = {file for file in files if isinstance(file, Path)}
    for suffix in (".jpg", ".png", ".jpeg", ".JPG"):
        bare = [i for i, file in enumerate(files) if isinstance(file, str) and names[i] and "." not in names[i]]
        for i, file in zip(bare, locate([names[i] + suffix for i in bare], folders), strict=True):
            if isinstance(file, Path):
                twice = f"is {file.name}, which has a name of its own; keep one of them"
                files[i] = twice if file in taken else file
                taken.add(file)
    return files
