"""Formats that are known and not read: what a file or folder looks like, and how to convert it.

Nothing here raises: what is not known is None.
"""

import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from maskkit.data.text_files import beginning_of
from maskkit.errors import DataError

_LARGEST = 64 << 20
"""Bytes of the largest json that is read to tell its format."""
_FILES = 20
"""So many files of a folder are looked at."""


class _Known(NamedTuple):
    """A format by the look of its json."""

    name: str
    remedy: str
    looks: Callable[[Any], bool]
    """Whether a json object is of this format, or the first object of a list."""


def _has(*keys: str) -> Callable[[Any], bool]:
    return lambda row: isinstance(row, dict) and all(key in row for key in keys)


_LABELBOX = "convert it to COCO by Labelbox's Python library"
_OBJECTS = (
    _Known(
        "Cityscapes polygons", "give the folder of gtFine/ and leftImg8bit/", _has("imgHeight", "imgWidth", "objects")
    ),
    _Known(
        "a file of one Supervisely image",
        "give the folder of the project, in which meta.json lies",
        lambda c: _has("size", "objects")(c) and isinstance(c["size"], dict),
    ),
    _Known("a file of one LabelMe image", "give the folder that it lies in", _has("shapes")),
    _Known("a VoTT json", "in VoTT choose the export format Pascal VOC", _has("asset", "regions")),
    _Known("a VoTT project", "in VoTT choose the export format Pascal VOC", _has("assets", "tags")),
    _Known("a Labelbox export", _LABELBOX, _has("data_row")),
    _Known("FiftyOne's own format", "export it as fo.types.COCODetectionDataset", _has("samples")),
    _Known("V7's Darwin json", "export it as COCO", _has("item", "annotations")),
    _Known("GeoJSON", "convert it to COCO, in pixels of the images", lambda c: _has("features", "type")(c)),
)
_ROWS = (
    _Known("a Labelbox export", _LABELBOX, _has("data_row")),
    _Known("a Labelbox export", "export it again as COCO", _has("Labeled Data")),
    _Known("a manifest of SageMaker Ground Truth", "convert it to COCO, in a folder of the images", _has("source-ref")),
    _Known("a COCO results file", "give the ground truth; this is for eval --predictions", _has("image_id", "score")),
    _Known("a Scalabel (BDD100K) json", "convert it by: python -m scalabel.label.to_coco", _has("name", "labels")),
    _Known("a CreateML json", "export it again as COCO", _has("image", "annotations")),
    _Known("a reduced Label Studio json (JSON-MIN)", "in Label Studio choose Export, JSON", _has("image", "label")),
    _Known("a reduced Label Studio json (JSON-MIN)", "in Label Studio choose Export, JSON", _has("image", "annotator")),
)  # fmt: skip
_ENDINGS = {
    ".tfrecord": ("TFRecord", "export the data set again as COCO or Pascal VOC"),
    ".tfrec": ("TFRecord", "export the data set again as COCO or Pascal VOC"),
    ".record": ("TFRecord", "export the data set again as COCO or Pascal VOC"),
    ".parquet": ("a Parquet table", "save the images as files and the annotations as COCO"),
    ".zip": ("an archive", "unpack it and give the folder"),
    ".tar": ("an archive", "unpack it and give the folder"),
    ".gz": ("an archive", "unpack it and give the folder"),
    ".mat": ("a MATLAB file", "save the label maps as PNG"),
}
_LINES = (".jsonl", ".ndjson", ".manifest")
"""Suffixes of files with a json in each line."""
_LOOKED_AT = {*_ENDINGS, *_LINES, ".json", ".xml", ".txt", ".csv"}


def of_one_image(file: Path) -> bool:
    """Whether a json is LabelMe's, called as its image is, which may be ``test``, or lists classes of images."""
    try:
        beginning = beginning_of(file, 1 << 16)
    except DataError:
        return False
    keys = set(re.findall(rb'"(\w+)"\s*:', beginning))
    named = file.name == "labels.json" or bool(keys & {b"shapes", b"imagePath", b"imageData"})
    return named and not keys & {b"images", b"annotations", b"categories"}


def of_json(content: Any) -> str | None:
    """The sentence about a json, parsed, that is of a known format."""
    one = next(iter(content), None) if isinstance(content, list) else content
    known: Sequence[_Known] = _ROWS if isinstance(content, list) else _OBJECTS
    return next((_sentence(k.name, k.remedy) for k in known if k.looks(one)), None)


def of_file(file: Path) -> str | None:
    """The sentence about a file of a known format."""
    suffix = file.suffix.lower()
    if re.search(r"\.tfrecord(-\d+-of-\d+)?$|\.tfrec$", file.name):
        suffix = ".tfrecord"
    if suffix in _ENDINGS:
        return _sentence(*_ENDINGS[suffix])
    try:
        if suffix == ".xml":
            return _of_xml(beginning_of(file, 1 << 16))
        if suffix in _LINES:
            lines = beginning_of(file, 1 << 16).splitlines()
            return of_json([json.loads(lines[0])]) if lines else None
        if suffix == ".json" and file.stat().st_size <= _LARGEST:
            return of_json(json.loads(beginning_of(file, _LARGEST)))
        if suffix == ".csv" and beginning_of(file, 4096).lstrip(b"\xef\xbb\xbf").startswith(b"Pixel Value"):
            remedy = "put the images into images/, their *_mask.png as *.png into masks/, and name the classes there"
            return _sentence("the list of classes of Roboflow's semantic masks", remedy)
        if suffix == ".txt":
            return _of_text(beginning_of(file, 4096).decode("utf-8", "replace"))
    except (DataError, OSError, ValueError, RecursionError):
        pass
    return None


def of_folder(folder: Path) -> str | None:
    """The sentence about a folder of a known format."""
    try:
        if (folder / "gtFine").is_dir() or (folder / "gtCoarse").is_dir():
            return _sentence(
                "Cityscapes without its images or its fine labels", "put gtFine/ and leftImg8bit/ into this folder"
            )
        inside = (f for sub in ("", "annotations", "ann", "train", "labels") for f in (folder / sub).glob("*.*"))
        named = (f for f in inside if f.suffix.lower() in _LOOKED_AT or ".tfrecord-" in f.name)
        for file in islice(named, _FILES):
            if (sentence := of_file(file)) is not None:
                return f"{file.relative_to(folder)}: {sentence}"
    except OSError:
        pass
    return None


def _of_xml(beginning: bytes) -> str | None:
    if re.search(rb"<annotation\b", beginning):
        remedy = "give the folder of its image, or the one that Annotations/ and JPEGImages/ lie in"
        return _sentence("a Pascal VOC file of one image", remedy)
    return None


def _of_text(text: str) -> str | None:
    rows = [line.split() for line in text.splitlines()[:5] if ":" not in line]
    number = re.compile(r"-?[0-9.]+")

    def all_have(words: int, label: int, start: int, stop: int) -> bool:
        """Whether every row has so many words, a name at ``label``, and numbers from ``start`` to ``stop``."""
        return bool(rows) and all(
            len(row) == words and all(map(number.fullmatch, row[start:stop])) and not number.fullmatch(row[label])
            for row in rows
        )

    if all_have(10, 8, 0, 8):
        return _sentence("DOTA text with oriented boxes", "write a polygon for each object, as YOLO or COCO has it")
    if text and all(re.fullmatch(r"\d+,-?\d+(,-?[0-9.]+){7,8}", line.strip()) for line in text.splitlines()[:5]):
        return _sentence(
            "MOT text of tracks", "convert it to COCO, for example by Datumaro (datum convert -if mot_seq)"
        )
    if all_have(15, 0, 1, 15):
        return _sentence("KITTI text", "convert it to COCO, for example by Datumaro (datum convert -if kitti -f coco)")
    return None


def _sentence(name: str, remedy: str) -> str:
    return f"this is {name}, which is not read: {remedy}"
