"""Files that name the values or the colours of label images: ``classes.json``, ``classes.txt``, ``class_dict.csv``.

And ``labelmap.txt``, as CVAT and Datumaro write it beside VOC's folders.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from maskkit.data.files import load_json
from maskkit.data.label_map import BACKGROUND, BACKGROUND_NAME, IGNORE, colour_number
from maskkit.data.rules import Problems
from maskkit.data.text_files import read_lines, read_names, read_table
from maskkit.errors import DataError
from maskkit.prediction import Categories

_UNKNOWN = {"void", "ignore", "ignored", "unknown", "unlabeled", "unlabelled"}
"""Names of the value 255 that do not make it a class."""

VOID = (224, 224, 192)
"""The colour of the value 255 in VOC's palette."""

EXAMPLE = '{"classes": [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}]}'
"""What a ``classes.json`` looks like, for masks of 0 and 255."""


@dataclass(frozen=True)
class LabelClasses:
    """The classes of label images, and the class number of each value of a pixel."""

    categories: Categories
    """Their ids are the values, or the numbers that a file of colours gives."""
    numbers: Mapping[int, int]
    """Class number, or `IGNORE`, of each value; empty when only colours are declared."""
    colours: Mapping[int, int] | None = None
    """The same for colours, as `colour_number` has them."""


def find_classes(folder: Path, problems: Problems) -> LabelClasses | None:
    """The classes that a file in ``folder`` declares, None without one.

    Raises `DataError` for a file of another form.
    """
    if (file := folder / "classes.json").is_file():
        return _from_json(file)
    if (file := folder / "class_dict.csv").is_file():
        return _from_colours(file, problems)
    if (file := folder / "classes.txt").is_file():
        names = read_names(file, partial(problems.warn, file, ""))
        return of_values({value: name for value, name in enumerate(names) if value < IGNORE})
    return None


def of_values(names: Mapping[int, str], ignored: frozenset[int] = frozenset({IGNORE})) -> LabelClasses:
    """The classes of values that have these names."""
    kept = {value: name for value, name in sorted(names.items()) if value not in ignored}
    numbers = dict.fromkeys(ignored, IGNORE) | {value: i for i, value in enumerate(kept)}
    return LabelClasses(Categories(tuple(kept.values()), tuple(kept)), numbers)


def _from_json(file: Path) -> LabelClasses:
    """``{"classes": [{"id": 0, "name": "sky", "color": [0, 0, 255]}, ...], "void": {"id": 255}}``, colours or none."""
    content = load_json(file)
    rows = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f'{file}: has no list of classes; it is like {EXAMPLE}, with a "color" for colour images')
    void = content["void"] if isinstance(content.get("void"), dict) else {}
    names: dict[int, str] = {}
    colours: dict[int, int] = {}
    for i, row in enumerate(rows, 1):
        key = row.get("id") if isinstance(row, dict) else None
        if isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < 2**31 or not row.get("name"):
            raise DataError(f"{file}: class {i} of the list has no whole number from 0 as id, or no name; add them")
        if key in names:
            raise DataError(f"{file}: the id {key} is used twice, for {names[key]!r} and {row['name']!r}; correct one")
        names[key] = str(row["name"])
        if (colour := _colour_of(row, file, names[key])) is not None:
            colours[key] = colour
    if colours and len(colours) < len(names):
        lacking = next(name for key, name in names.items() if key not in colours)
        raise DataError(f"{file}: {lacking!r} has no color, other classes have one; add it")
    ignored = {void["id"]} if isinstance(void.get("id"), int) else set()
    if clash := [names[key] for key in ignored & names.keys() if names[key].lower() not in _UNKNOWN]:
        raise DataError(f"{file}: void has the id of {clash[0]!r}, whose pixels would be unknown; give it its own")
    if names.get(IGNORE, "void").lower() in _UNKNOWN:
        ignored.add(IGNORE)
    found = of_values(names, frozenset(ignored))
    if not colours:
        return found
    table: dict[int, int] = {}
    for key, colour in colours.items():
        if colour in table:
            raise DataError(f"{file}: the color of {names[key]!r} is that of another class; give it its own")
        table[colour] = found.numbers[key]
    if (colour := _colour_of(void, file, "void")) is not None:
        table.setdefault(colour, IGNORE)
    return replace(found, colours=table)


def _colour_of(row: Mapping[str, Any], file: Path, name: str) -> int | None:
    value = row.get("color", row.get("colour"))
    return None if value is None else _colour(value, file, name)


def _from_colours(file: Path, problems: Problems) -> LabelClasses:
    """A table with the columns name, r, g, b."""
    rows = read_table(file, partial(problems.warn, file, ""))
    names, numbers = [], {}
    named = bool(rows) and None in map(_whole, rows[0][1:4])
    for row in rows[named:]:
        if len(row) < 4:
            raise DataError(f"{file}: the row {','.join(row)} is not name,r,g,b; complete it")
        colour = _colour([_whole(cell) for cell in row[1:4]], file, row[0])
        if colour in numbers:
            raise DataError(f"{file}: the colour of {row[0]!r} is that of another class; give it its own")
        void = row[0].lower() in _UNKNOWN
        numbers[colour] = IGNORE if void else len(names)
        if not void:
            names.append(row[0])
    if not names:
        raise DataError(f"{file}: names no class; it is a table name,r,g,b with a row for each class")
    return LabelClasses(Categories(tuple(names), tuple(range(len(names)))), {}, numbers)


def read_labelmap(file: Path, problems: Problems) -> LabelClasses:
    """The classes of a ``labelmap.txt``, a line ``name:red,green,blue:parts:actions`` for each; their ids are 1..K.

    The class called background is none, and those called void or ignored are unknown, as is VOC's colour of void. A
    class without a colour has boxes only. Raises `DataError` for colours of another form.
    """
    names: list[str] = []
    colours: dict[int, int] = {}
    for line in filter(None, (text.strip() for text in read_lines(file, partial(problems.warn, file, "")))):
        name, _, rest = line.partition(":")
        if line.startswith("#"):
            continue
        unknown, ground = name.lower() in _UNKNOWN, name == BACKGROUND_NAME
        number = BACKGROUND if ground else IGNORE if unknown else len(names)
        if number == len(names):
            names.append(name)
        if cells := rest.partition(":")[0]:
            colour = _colour([_whole(cell) for cell in cells.split(",")], file, name)
            if colours.setdefault(colour, number) != number:
                raise DataError(f"{file}: the colour of {name!r} is that of another class; give it its own")
    colours.setdefault(colour_number(*VOID), IGNORE)
    colours.setdefault(0, BACKGROUND)
    categories = Categories.of(names)
    values = {0: BACKGROUND, IGNORE: IGNORE} | {value: i for i, value in enumerate(categories.ids)}
    return LabelClasses(categories, values, colours)


def _colour(value: Any, file: Path, name: str) -> int:
    """The value that stands for a colour. Raises `DataError` unless it is three whole numbers from 0 to 255."""
    parts = value if isinstance(value, list) else []
    if len(parts) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in parts):
        raise DataError(f"{file}: the color of {name!r} is not [red, green, blue], each from 0 to 255; correct it")
    return colour_number(*parts)


def _whole(cell: str) -> int | None:
    cell = cell.strip()
    return int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 4 else None
