"""Where the images of a data set lie: found by the names in its files, and kept to the folders of the data set."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from unicodedata import normalize

from maskkit.data.files import walk
from maskkit.data.images import SUFFIXES, list_images
from maskkit.data.label_map import LabelFile
from maskkit.data.rules import Problems, counted
from maskkit.errors import DataError

if TYPE_CHECKING:
    from maskkit.data.dataset import Dataset

HOW_TO_ALLOW = "copy it there, or allow it by --allow-outside if you trust the file that names it"

_SHOWN = 20
"""Number of images of one fault that are reported one by one."""
_NAMED = 5
_LOOKED_AT = 100_000
"""Files of a folder, and of those inside of it, that are looked at."""


def locate(names: Sequence[str], folders: Iterable[Path]) -> list[Path | str]:
    """The file of each name, or the reason why it has none.

    A name means the file below the first of ``folders`` that has it. Where none has it, it may be written in another
    form of Unicode, and leading folders of the name are dropped, since they may be those of another machine. A file is
    given to one name alone: to the one that names it exactly, and to none of several that only come down to it.
    """
    places = list(folders)
    slashed = [name.replace("\\", "/") for name in names]
    found: list[Path | None] = [_first(places, name) for name in slashed]
    owners: dict[str, int] = {}
    for i, path in enumerate(found):
        if path is not None:
            owners.setdefault(os.path.normpath(path), i)
    shortened = {i: path for i, name in enumerate(slashed) if found[i] is None and (path := _shortened(places, name))}
    claims: dict[str, list[int]] = defaultdict(list)
    for i, path in shortened.items():
        claims[os.path.normpath(path)].append(i)
    result: list[Path | str] = []
    for i, path in enumerate(found):
        if path is not None:
            owner = owners[os.path.normpath(path)]
            result.append(path if owner == i else f"has the same file as {names[owner]!r}; give an image one record")
        elif i in shortened:
            key = os.path.normpath(shortened[i])
            others = [j for j in [owners.get(key, i), *claims[key]] if j != i]
            lost = f"there is no such image, and {shortened[i].name} is that of {{!r}} too; add the image that is meant"
            result.append(lost.format(names[others[0]]) if others else shortened[i])
        else:
            result.append(
                f"there is no such image in {', '.join(f'{p}/' for p in places)}; add it, or correct the name"
            )
    return result


def _first(folders: list[Path], name: str) -> Path | None:
    """The file of that name; os.path.isfile is False, and no error, for an impossible name."""
    return next((f / name for f in folders if name and os.path.isfile(f / name)), None)


def _shortened(folders: list[Path], name: str) -> Path | None:
    # macOS takes letters with accents apart, other systems do not
    forms = [name] if name.isascii() else [name, normalize("NFC", name), normalize("NFD", name)]
    for start in range(len(name.split("/"))):
        for parts in (form.split("/")[start:] for form in forms):
            if ".." not in parts and (path := _first(folders, "/".join(parts).lstrip("/"))):
                return path
    return None


def confined(dataset: "Dataset", homes: Iterable[Path]) -> "Dataset":
    """The data set without the images and label images that lie outside of ``homes``, each with a separate error.

    Links are followed: a link inside to a file outside is outside, unless its folder is one of ``homes``.
    """
    places = list(homes)
    roots = {os.path.realpath(home) for home in places}

    @cache
    def folder_inside(folder: str) -> bool:
        real = os.path.realpath(folder)
        return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in roots)

    def inside(path: Path) -> bool:
        return folder_inside(os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path))

    kept, problems, strays = [], Problems(dataset.problems), 0
    for record in dataset.records:
        files = [record.path, *([record.semantic.path] if isinstance(record.semantic, LabelFile) else [])]
        if stray := next((path for path in files if not inside(path)), None):
            strays += 1
            if strays <= _SHOWN:
                where = f"{os.path.normpath(stray)} is outside of the data set's folder {places[0]}"
                problems.error(dataset.source, f"image {record.image_id}", f"{where}; {HOW_TO_ALLOW}")
        else:
            kept.append(record)
    if strays > _SHOWN:
        problems.error(dataset.source, "", f"{strays - _SHOWN} more images are outside of {places[0]}; {HOW_TO_ALLOW}")
    return dataset if len(kept) == len(dataset.records) else replace(dataset, records=kept, problems=problems)


def unseen(folder: Path, name: object) -> Path:
    """A path below ``folder`` for an image called ``name`` that need not be there."""
    parts = PurePosixPath(str(name).replace("\\", "/").replace("\0", "")).parts
    return folder.joinpath(*(part for part in parts if part not in ("..", "/", "//")))


def inside(dataset: "Dataset", homes: Sequence[Path]) -> "Dataset":
    """The same images, those that `confined` leaves out with paths in the first of ``homes``."""
    kept = {record.image_id for record in confined(dataset, homes).records}
    records = [r if r.image_id in kept else replace(r, path=homes[0] / r.path.name) for r in dataset.records]
    return replace(dataset, records=records)


def note_left_out(dataset: "Dataset", folders: Iterable[Path], recursive: bool) -> None:
    """Warn in the problems of the data set of files in ``folders`` that one would take for images of it.

    Without ``recursive`` that is true of images in folders inside of these too.
    """
    places = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    known = {os.path.normpath(record.path) for record in dataset.records}
    for folder in places:
        if note := list_images(folder, recursive).note():
            dataset.problems.warn(folder, "", note)
        if not recursive and (deeper := _deeper(folder, places, known)):
            shown = ", ".join(deeper[:_NAMED]) + (", ..." if len(deeper) > _NAMED else "")
            count = counted(len(deeper), "image", be=True)
            dataset.problems.warn(
                folder, "", f"{count} left out, in folders inside of it: {shown}; move them up, or give that folder"
            )


def _deeper(folder: Path, others: Sequence[Path], known: set[str]) -> list[str]:
    """Images in folders inside of a folder, other than ``others`` and hidden ones, that are not ``known``."""
    apart = [other for other in others if other != folder]
    found = []
    with suppress(DataError):  # a folder that cannot be listed
        for path in islice(walk(folder), _LOOKED_AT):
            inner = path.relative_to(folder)
            if len(inner.parts) == 1 or path.suffix.lower() not in SUFFIXES or os.path.normpath(path) in known:
                continue
            if not any(part.startswith(".") for part in inner.parts) and not any(map(path.is_relative_to, apart)):
                found.append(inner.as_posix())
    return found
