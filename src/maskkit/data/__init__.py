"""Data sets: open one in any format, check it, convert it.

The format is recognised by its files. `open_dataset` reads a data set, `open_splits` its training and validation part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskkit.errors import DataError

if TYPE_CHECKING:
    from maskkit.data.dataset import Dataset
    from maskkit.data.formats import Format


def open_dataset(path: str | Path, split: str | None = None, allow_outside: bool = False) -> Dataset:
    """The data set at ``path``: an annotation file or a folder, in any of the formats.

    ``split`` chooses ``train``, ``val`` or ``test`` of a folder that has splits; with None, or in a data set without
    splits, everything is read. Raises `DataError` when no format is recognised, the folder lacks the split, or the
    annotation file as a whole cannot be read. Bad records do not raise: they are left out and listed in ``problems``.

    Images must lie in the folder of the data set, of which some folders may be links, unless ``allow_outside``: a file
    of annotations from anywhere could name any file of this machine.
    """
    from maskkit.data.places import confined, note_left_out

    path = Path(path)
    found = _format(path)
    chosen = split if found.splits(path) else None
    dataset, folders = found.read(path, chosen), found.folders(path, chosen)
    note_left_out(dataset, folders.listed, folders.deep)
    return dataset if allow_outside else confined(dataset, folders.homes)


def open_truth(path: str | Path, split: str | None = None, allow_outside: bool = False) -> Dataset:
    """`open_dataset` to measure results with: where the format states the sizes of images, none of them must be there.

    Such a data set cannot be loaded from. Images outside of the data set's folder are measured, but no path to them is
    given unless ``allow_outside``.
    """
    from maskkit.data.places import inside

    path = Path(path)
    found = _format(path)
    if found.read_truth is None:
        return open_dataset(path, split, allow_outside)
    chosen = split if found.splits(path) else None
    dataset = found.read_truth(path, chosen)
    return dataset if allow_outside else inside(dataset, found.folders(path, chosen).homes)


def find_splits(path: str | Path) -> list[str]:
    """The splits (``train``, ``val``, ``test``) of a data set; none for a single file."""
    return _format(Path(path)).splits(Path(path))


def open_splits(
    train: str | Path,
    val: str | Path | None = None,
    val_split: float = 0.2,
    seed: int = 0,
    allow_outside: bool = False,
) -> tuple[Dataset, Dataset]:
    """Training and validation data, both with the classes of the training data.

    Without ``val`` the validation split of ``train`` is taken; if there is none, the share ``val_split`` of the images
    is set aside, the same images for the same ``seed``. ``allow_outside`` is as in `open_dataset`. Raises `DataError`.
    """
    training = open_dataset(train, "train", allow_outside)
    if val is not None or "val" in find_splits(train):
        validation = open_dataset(val or train, "val", allow_outside)
    elif len(training) < 2:
        raise DataError(f"{train}: has {len(training)} usable images; training and validation must have one each")
    elif not 0 < val_split < 1:
        raise DataError(f"the share of validation images must be between 0 and 1, got {val_split}")
    else:
        return training.split(val_split, seed)
    return training, validation.with_categories(training.categories)


def _format(path: Path) -> Format:
    """The format of ``path``."""
    from maskkit.data.formats import FORMATS, foreign  # imported on demand: it imports torch

    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    if path.is_file():
        named = [f for f in FORMATS if path.suffix.lower() in f.suffixes]
        found = next((f for f in named if f.recognise(path)), None)
        if found is None:
            if (known := foreign.of_file(path)) is not None:
                raise DataError(f"{path}: {known}")
            raise DataError(
                f"{path}: is neither a COCO .json nor a CVAT .xml nor a YOLO .yaml nor a .csv of boxes or tags; give "
                "one of them, or a folder"
            )
        return found
    found = next((f for f in FORMATS if f.recognise(path)), None)
    if found is None:
        if (known := foreign.of_folder(path)) is not None:
            raise DataError(f"{path}: {known}")
        layouts = "\n".join(f"  {f.layout}" for f in FORMATS)
        raise DataError(f"{path}: no data set is recognised in this folder. Looked for\n{layouts}")
    return found
