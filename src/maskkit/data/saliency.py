"""Saliency maps: one grey image per image, bright at salient pixels, found by the name of the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float

from maskkit.data.images import find_images, read_image
from maskkit.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


def find(folder: Path, images: Sequence[Path]) -> list[Path]:
    """The map of each image: the file in ``folder``, or in its folders, with the name of the image and any suffix.

    Of several such files the one in a folder named as the image's is taken. Raises `DataError` when there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of saliency maps; check the path")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in find_images(folder, recursive=True):
        by_name[file.stem].append(file)
    return [_only(folder, image, [f for f in by_name[image.stem] if f != image]) for image in images]


def read(path: Path, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The map of an image of ``size`` (H, W) on 0..1, the mean of the colours. Raises `DataError` for another size."""
    image = read_image(path)
    if tuple(image.shape[1:]) != size:
        raise DataError(f"{path}: is {image.shape[2]} x {image.shape[1]} pixels, the image {size[1]} x {size[0]}")
    return image.float().mean(0) / 255


def _only(folder: Path, image: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        files = [f for f in files if f.parent.name == image.parent.name]
    if len(files) != 1:
        found = f"{len(files)} saliency maps" if files else "no saliency map"
        raise DataError(f"{folder}: has {found} for {image}; put one there: {image.parent.name}/{image.stem}.png")
    return files[0]
