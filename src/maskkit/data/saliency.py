"""Saliency maps: one grey image per image, bright at salient pixels, found by the name of the image."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float

from maskkit.data.images import find_images, read_image
from maskkit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def find(folder: Path, images: Sequence[Path]) -> list[Path]:
    """The map of each image: the file in ``folder``, or in its folders, with the name of the image and any suffix.

    Of several such files the one is taken whose folders are named as the image's, from the last one up. Raises
    `DataError` when there is none, several are equally good, or two images would share one.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of saliency maps; check the path")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in find_images(folder, recursive=True):
        by_name[file.stem].append(file)
    maps = {image: _only(folder, image, [f for f in by_name[image.stem] if f != image]) for image in images}
    _each_its_own(maps)
    return [maps[image] for image in images]


def places(folder: Path, images: Sequence[Path]) -> dict[Path, Path]:
    """The file for the map of each image where `find` finds it: in ``folder``, below the folders of the images.

    Raises `DataError` for images of one folder whose names differ in the suffix alone.
    """
    full = {image: Path(os.path.abspath(image)) for image in images}
    top = os.path.commonpath([f.parent.parent for f in full.values()]) if full else ""
    found = {image: folder / f.relative_to(top).with_suffix(".png") for image, f in full.items()}
    _each_its_own(found)
    return found


def read(path: Path, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The map of an image of ``size`` (H, W) on 0..1, the mean of the colours. Raises `DataError` for another size."""
    image = read_image(path)
    if tuple(image.shape[1:]) != size:
        raise DataError(f"{path}: is {image.shape[2]} x {image.shape[1]} pixels, the image {size[1]} x {size[0]}")
    return image.float().mean(0) / 255


def _only(folder: Path, image: Path, files: list[Path]) -> Path:
    equal = {f: _folders_in_common(f, image) for f in files}
    best = [f for f in files if equal[f] == max(equal.values())]
    if len(best) != 1:
        found = f"{len(best)} saliency maps" if best else "no saliency map"
        raise DataError(f"{folder}: has {found} for {image}; put one there: {image.parent.name}/{image.stem}.png")
    return best[0]


def _folders_in_common(one: Path, other: Path) -> int:
    """Number of folders with equal names, from the last one up."""
    pairs = zip(reversed(one.parent.parts), reversed(other.parent.parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _each_its_own(maps: dict[Path, Path]) -> None:
    owners: dict[Path, Path] = {}
    for image, file in maps.items():
        if (other := owners.setdefault(file, image)) != image:
            raise DataError(
                f"{file}: would be the saliency map of both {other} and {image}; name their maps by the folders of the "
                "images, or rename one of the two"
            )
