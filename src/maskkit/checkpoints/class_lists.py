"""Names of the classes of imported weights: from a file, or of a data set that everyone knows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskkit.data.files import load_json
from maskkit.data.text_files import read_lines
from maskkit.errors import DataError
from maskkit.prediction import Categories
from maskkit.zoo.class_names import DATA_SETS

_FORMS = (
    "a text file has a name per line; a .json file has a list of names, COCO's categories, the classes of a "
    "classes.json, or transformers' id2label"
)


def read_classes(source: str, task: str) -> Categories:
    """The classes that ``source`` names for a model of ``task``: a file, or a key of `DATA_SETS`.

    A file may be text with a name per line, or JSON: a list of names, ``{"categories": [{"id": 1, "name": "cat",
    "isthing": 1}]}`` as in COCO's files, ``{"classes": [...]}``, or transformers' ``{"id2label": {"0": "cat"}}``. Where
    a file does not say which classes are things, all are for instances and none are for label maps. Raises `DataError`
    for another form, and where a panoptic model is not told.
    """
    path = Path(source)
    if source in DATA_SETS and not path.exists():
        return DATA_SETS[source]
    if not path.exists():
        raise DataError(f"{source}: there is no such file of class names; {_FORMS}; known are {', '.join(DATA_SETS)}")
    if path.suffix.lower() == ".json":
        names, ids, things = _from_json(load_json(path), path)
    else:
        names = [line.strip() for line in read_lines(path, lambda _: None) if line.strip()]
        ids, things = list(range(1, len(names) + 1)), None
    if things is None and task == "panoptic":
        raise DataError(
            f"{path}: does not say which classes are things, as a panoptic model needs; give COCO's categories with "
            '"isthing": 1 or 0 for each'
        )
    try:
        return Categories(tuple(names), tuple(ids), tuple(things or [task != "semantic"] * len(names)))
    except ValueError:
        raise DataError(f"{path}: an id is used twice; give each class its own") from None


def numbered(count: int, task: str) -> Categories:
    """Classes whose names are not known: "class 1" and so on."""
    return named_classes([f"class {i}" for i in range(1, count + 1)], task)


def named_classes(names: Iterable[str], task: str) -> Categories:
    """Classes with these names: stuff for label maps, things for everything else."""
    return Categories.of((), names) if task == "semantic" else Categories.of(names)


def _from_json(content: Any, path: Path) -> tuple[list[str], list[int], list[bool] | None]:
    """Names, ids, and which are things, or None where the file does not say."""
    rows: Any = content
    if isinstance(content, Mapping):
        if isinstance(table := content.get("id2label"), Mapping) and all(str(key).isdecimal() for key in table):
            rows = [table[key] for key in sorted(table, key=int)]
        else:
            rows = content.get("categories", content.get("classes"))
    if isinstance(rows, list) and rows and all(isinstance(row, str) and row for row in rows):
        return rows, list(range(1, len(rows) + 1)), None
    if not isinstance(rows, list) or not rows or not all(_is_class(row) for row in rows):
        raise DataError(f"{path}: has no list of classes; {_FORMS}")
    flags = [row["isthing"] for row in rows if row.get("isthing") in (0, 1)]
    things = [bool(flag) for flag in flags] if len(flags) == len(rows) else None
    return [row["name"] for row in rows], [row["id"] for row in rows], things


def _is_class(row: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and type(row.get("id")) is int
        and isinstance(row.get("name"), str)
        and row["name"] != ""
    )
