"""Saliency maps: grey pictures that are bright where something stands out, one for each picture, found by its name."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from maskkit.data.images import find_images, read_image
from maskkit.errors import DataError


def find(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    """The map of each picture: the file in ``folder``, or in its folders, with the name of the picture but the ending.

    Of several such files that counts whose folder is called as the picture's. Raises `DataError` where there is none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of saliency maps; check the path")
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in find_images(folder, recursive=True):
        by_name[file.stem].append(file)
    return [_only(folder, picture, [f for f in by_name[picture.stem] if f != picture]) for picture in pictures]


def read(path: Path, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """The map of a picture of ``size`` (H, W) on 0..1, the mean of the colours. Raises `DataError` for another size."""
    image = read_image(path)
    if tuple(image.shape[1:]) != size:
        raise DataError(f"{path}: is {image.shape[2]} x {image.shape[1]} pixels, the picture {size[1]} x {size[0]}")
    return image.float().mean(0) / 255


def _only(folder: Path, picture: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        files = [f for f in files if f.parent.name == picture.parent.name]
    if len(files) != 1:
        found = f"{len(files)} saliency maps" if files else "no saliency map"
        raise DataError(f"{folder}: has {found} for {picture}; put one there: {picture.parent.name}/{picture.stem}.png")
    return files[0]
