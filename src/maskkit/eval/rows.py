"""Result rows: the form in which metrics and results files take predictions, and the only place that checks them.

A row follows COCO: an object, a class of a label map, or a segment, with the ids of the user's file. Masks are run
lengths. A label map has one row per class that occurs, a panoptic image one per segment.
"""

import json
import logging
import reprlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from maskkit.data import ids
from maskkit.data.dataset import Dataset
from maskkit.data.rules import CORNERS, are_corners, brief, folded, kind_of, sound_rle
from maskkit.errors import DataError
from maskkit.files import in_file_name, read_bytes, write_json
from maskkit.geometry import rle as rle_codec
from maskkit.geometry.polygons import to_rle as polygons_to_rle
from maskkit.geometry.rle import Rle
from maskkit.prediction import Categories, ImageId, Prediction

log = logging.getLogger(__name__)

Size = tuple[int, int]

_LARGEST = 1e300
_PACKED = {b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "packed by gzip"}
"""How files begin that hold other files."""
Unchecked = Sequence[Mapping[str, Any]]
"""Rows of any origin that have not been checked."""


class Row(TypedDict):
    """One result, of JSON types. `sound_rows` checks it."""

    image_id: ImageId
    category_id: int
    score: NotRequired[float]
    mask_score: NotRequired[float]
    """The score of the mask, where a method scores masks separately from boxes."""
    track_id: NotRequired[int]
    """The number of the object's track in a video."""
    frame: NotRequired[int]
    """The number of the frame in a video, from 0."""
    bbox: NotRequired[list[float]]
    """``x y w h``"""
    segmentation: NotRequired[Rle]
    """Compressed run lengths, ``counts`` as text."""


@dataclass(frozen=True)
class Known:
    """What rows may refer to."""

    sizes: Mapping[ImageId, Size | None]
    """(H, W) of each image id, None where the file does not say."""
    classes: Collection[int]
    """Category ids."""
    images: Mapping[ImageId | None, ImageId] = field(init=False, repr=False)
    """Image ids by `maskkit.data.ids.key`: those of results may be written otherwise."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", {ids.key(own): own for own in self.sizes})

    @classmethod
    def of(cls, dataset: Dataset) -> "Known":
        """The images and classes of a data set."""
        return cls({r.image_id: r.size for r in dataset.records}, dataset.categories.ids)

    @classmethod
    def of_coco(cls, truth: Mapping[str, Any]) -> "Known":
        """The images and classes of COCO ground truth."""
        images = truth["images"]
        sizes = {i["id"]: (i["height"], i["width"]) if "height" in i and "width" in i else None for i in images}
        return cls(sizes, dict.fromkeys(sorted(c["id"] for c in truth["categories"])))


def sound_rows(
    rows: Unchecked, known: Known, need: Collection[str] = (), source: str = "predictions", masks: bool = True
) -> list[Row]:
    """``rows`` after a check of every field of `Row`; other fields are passed through.

    ``need`` are fields that each row must have besides its ids. Without ``masks``, the mask of a row with a box is
    ignored. Raises `DataError` with ``source`` and the number of the first bad row.
    """
    sound = []
    fills = surely_fill(rows, known) if masks else []
    for number, row in enumerate(rows, 1):
        try:
            sound.append(_sound_row(row, known, need, masks, masks and fills[number - 1]))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{source}, row {number} of {len(rows)}: {brief(str(error))}") from None
    return sound


def read_json(path: Path) -> Any:
    """The content of a results file. Raises `DataError` when it cannot be read or is not JSON."""
    content = read_bytes(path)
    if packed := next((name for start, name in _PACKED.items() if content.startswith(start)), None):
        raise DataError(f"{path}: is {packed}, not JSON; unpack it and give the file that is in it")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # of the JSON, or of its UTF-8
        remedy = "make one list of its lines" if "Extra data" in str(error) else "export the predictions again"
        raise DataError(f"{path}: not JSON ({error}); {remedy}, as a COCO results file") from None


def rows_in(content: Any, path: Path, known: Known, need: Collection[str]) -> list[Row]:
    """The rows of ``content``, which was read from ``path``. Raises `DataError` for the first bad row."""
    if not isinstance(content, list):
        lists = [key for key, value in content.items() if isinstance(value, list)] if isinstance(content, dict) else []
        hint = f"; write the list {lists[0]!r} in it as a file of its own" if lists else ""
        if "images" in lists:
            hint = "; it looks like ground truth, pass it as the data"
        raise DataError(f"{path}: a COCO results file is a list of rows, this is {kind_of(content)}{hint}")
    rows = sound_rows(content, known, need, str(path))
    if are_corners((r["bbox"], s) for r in rows if "bbox" in r and (s := known.sizes[r["image_id"]])):
        log.warning("%s: %s", path, CORNERS)
    if any(not 0 <= (row.get("score") or 0) <= 1 for row in rows):
        log.warning("%s: has scores that are not between 0 and 1; they are ranked as they are", path)
    return rows


def rows_by_image(rows: Unchecked, dataset: Dataset) -> dict[ImageId, list[Mapping[str, Any]]]:
    """The rows of each image of ``dataset``. Raises `DataError` for one of an unknown image or class."""
    known = Known.of(dataset)
    found: dict[ImageId, list[Mapping[str, Any]]] = {image_id: [] for image_id in known.sizes}
    for number, row in enumerate(rows, 1):
        try:
            image_id, category_id = place(row, known)
        except ValueError as error:
            raise DataError(f"predictions, row {number} of {len(rows)}: {brief(str(error))}") from None
        found[image_id].append({**row, "image_id": image_id, "category_id": category_id})
    return found


def rows_of(predictions: Iterable[Prediction], each: Callable[[int, Prediction], None] | None = None) -> list[Row]:
    """The rows of all predictions; ``each`` is called with the index and the prediction of each image."""
    rows: list[Row] = []
    for i, prediction in enumerate(predictions):
        rows += cast(list[Row], prediction.to_coco())
        if each is not None:
            each(i, prediction)
    return rows


def write_rows(folder: Path, rows: Unchecked, categories: Categories) -> None:
    """Write ``predictions.json``, and ``categories.json`` with the names of its category ids."""
    write_json(folder / "categories.json", categories.to_coco())
    write_json(folder / "predictions.json", rows)


def named_rows(
    rows: Unchecked, images: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """For each COCO record of ``images``: a unique file stem, that of its overlay where it has one, the record, and its
    rows."""
    taken: set[str] = set()
    for image, found in rows.by_image(images) if isinstance(rows, StoredRows) else _by_image(rows, images):
        stem = Path(image.get("overlay") or image["file_name"]).stem
        while stem.lower() in taken:
            stem = f"{stem}_{in_file_name(image['id'])}"
        taken.add(stem.lower())
        yield stem, image, found


def _by_image(
    rows: Unchecked, images: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    by_image: dict[ImageId, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_image[row["image_id"]].append(row)
    return ((image, by_image[image["id"]]) for image in images)


class StoredRows(Sequence[Mapping[str, Any]]):
    """Rows on disk, image by image, that would fill the memory: they are read each time they are used."""

    def __init__(self, read: Callable[[], Iterable[list[dict[str, Any]]]], count: int) -> None:
        self._read = read
        self._count = count

    def by_image(
        self, images: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
        """Each of ``images``, which are those of the rows in the same order, and its rows."""
        return ((image, list(rows)) for image, rows in zip(images, self._read(), strict=True))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return chain.from_iterable(self._read())

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def shared_classes(known: Categories, dataset: Dataset) -> tuple[dict[int, int], Dataset]:
    """A map from ids of ``known`` to ids of the data for the shared class names, and the data set with these classes.

    Names are compared exactly (`Categories.numbers_in`). What is left is compared without case, surrounding spaces and
    forms of Unicode, where that names one class on both sides, and logged, as are classes with objects that are left
    out because the model lacks them. Raises `DataError` when no class is shared.
    """
    theirs = dataset.categories
    numbers = theirs.numbers_in(known)
    ours, others = _folded(known), _folded(theirs)
    for k, name in enumerate(theirs.names):
        fold = folded(name)
        if k not in numbers and len(others[fold]) == 1 == len(ours[fold]):
            numbers[k] = ours[fold][0]
            log.warning("%s: class %r is taken for the model's %r", dataset.source, name, known.names[numbers[k]])
    if not numbers:
        raise DataError(
            f"{dataset.source}: shares no class with the model: the model has {_some(known.names)}, the data has "
            f"{_some(theirs.names)}; rename the classes of the data, or train on it"
        )
    if unknown := sorted({n for r in dataset.records for n in r.classes} - numbers.keys()):
        names = _some([theirs.titles[n] for n in unknown])
        log.warning("%s: the model does not know %s; only the other classes are measured", dataset.source, names)
    return {known.ids[n]: theirs.ids[k] for k, n in numbers.items()}, dataset.only(sorted(numbers))


def _folded(categories: Categories) -> defaultdict[str, list[int]]:
    """Class numbers by folded name."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for n, name in enumerate(categories.names):
        numbers[folded(name)].append(n)
    return numbers


def translated(rows: Iterable[Row], ids: Mapping[int, int]) -> list[Row]:
    """The rows with their category ids mapped by ``ids``; rows of other classes are left out."""
    return [cast(Row, {**row, "category_id": ids[row["category_id"]]}) for row in rows if row["category_id"] in ids]


def place(record: Mapping[str, Any], known: Known) -> tuple[ImageId, int]:
    """Image and category id of a record, as the ground truth has them. Raises ``ValueError`` for unknown ones."""
    image_id = known.images.get(ids.key(record.get("image_id")))
    category_id = ids.whole(record.get("category_id"))
    if image_id is None or category_id is None or category_id not in known.classes:
        name, there = ("image_id", [*known.sizes]) if image_id is None else ("category_id", [*known.classes])
        some = ", ".join(map(repr, there[:3])) + (", ..." if len(there) > 3 else "")
        raise ValueError(f"{name} {shorten(record.get(name))} is not in the ground truth, which has {some or 'none'}")
    return image_id, category_id


def shorten(value: Any) -> str:
    """A value of a file in a message."""
    return reprlib.repr(value)


def number(value: Any, name: str) -> float:
    """A finite number, else ``ValueError``."""
    if type(value) is float and -_LARGEST <= value <= _LARGEST:  # nearly always, and files have many
        return value
    if isinstance(value, Real) and not isinstance(value, bool | int):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"{name} is {shorten(value)}, not a finite number")
    return float(value)


def box(value: Any) -> list[float]:
    """``[x, y, width, height]``, else ``ValueError``."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != 4:
        raise ValueError(f"bbox is {shorten(value)}, not [x, y, width, height]")
    return [number(v, "bbox") for v in value]


def run_lengths(shape: Any, size: Size | None) -> Rle:
    """Compressed run lengths of COCO's ``segmentation``: polygons, or run lengths as a list or as text.

    Raises ``ValueError`` where they do not fill an image of ``size`` exactly.
    """
    if size is None:
        raise ValueError("its image has no height and width in the ground truth; masks require them")
    if isinstance(shape, list):
        return polygons_to_rle(shape, size)
    if not isinstance(shape, Mapping) or "counts" not in shape or "size" not in shape:
        raise ValueError("the segmentation is neither a list of polygons nor run lengths with size and counts")
    return sound_rle(shape, size, allow_empty=True)


def surely_fill(rows: Unchecked, known: Known) -> list[bool]:
    """Which rows, or annotations, have compressed run lengths that fill their image.

    All at once, since one by one takes longer.
    """
    numbers, counts, pixels = [], [], []
    for number, row in enumerate(rows):
        shape = row.get("segmentation") if isinstance(row, Mapping) else None
        text = shape.get("counts") if isinstance(shape, Mapping) else None
        size = known.sizes.get(known.images.get(ids.key(row.get("image_id")), "")) if text else None
        if size is not None and isinstance(text, str | bytes) and _is_size(shape, size):
            numbers.append(number)
            counts.append(text.encode("ascii", "replace") if isinstance(text, str) else text)
            pixels.append(size[0] * size[1])
    found = np.zeros(len(rows), bool)
    found[numbers] = rle_codec.surely_fill(counts, np.array(pixels, np.int64))
    return found.tolist()


def _is_size(shape: Any, size: Size) -> bool:
    return isinstance(shape.get("size"), list | tuple) and list(shape["size"]) == list(size)


def _sound_row(row: Any, known: Known, need: Collection[str], masks: bool, fills: bool) -> Row:
    if not isinstance(row, Mapping):
        raise ValueError(
            f"a result is an object with image_id, category_id, score and bbox or segmentation, not {shorten(row)}"
        )
    shape, xywh = row.get("segmentation"), row.get("bbox")
    missing = [key for key in ("image_id", "category_id", *need) if row.get(key) is None]
    if missing and missing != ["segmentation"]:
        raise ValueError(f"has no {' and no '.join(missing)}")
    image_id, category_id = place(row, known)
    size = known.sizes[image_id]
    if not shape and not xywh:
        raise ValueError("has neither a bbox nor a segmentation")
    if "segmentation" in need and not shape:
        raise ValueError("has no segmentation, so masks cannot be measured; export the masks")
    sound: dict[str, Any] = {**row, "image_id": image_id, "category_id": category_id}
    sound |= {key: number(row[key], key) for key in ("score", "mask_score") if row.get(key) is not None}
    if xywh:
        sound["bbox"] = box(xywh)
    if shape and (masks or not xywh):
        sound["segmentation"] = rle_codec.to_text(shape if fills else run_lengths(shape, size))
    return cast(Row, sound)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
