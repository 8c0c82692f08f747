"""Converts a data set from any format to another, with its splits, images and labels.

Polygons are copied. A pixel mask becomes the polygon along the edges of its pixels, which rasterises to the same
pixels. What a format cannot hold is refused, or counted in the result.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from maskkit.data import find_splits, open_dataset
from maskkit.data.convert import (
    cityscapes,
    coco,
    coco_panoptic,
    cvat,
    datumaro,
    labelme,
    labelstudio,
    png,
    supervisely,
    via,
    voc,
    yolo,
)
from maskkit.data.convert.job import Job, Splits
from maskkit.data.convert.leftovers import new_folder, remove_abandoned
from maskkit.data.convert.outlines import bridge, trace
from maskkit.data.convert.regions import same_classes
from maskkit.data.target_formats import TARGETS, TargetFormat
from maskkit.errors import DataError, FileError, explain

__all__ = ["TARGETS", "TargetFormat", "bridge", "convert", "require_new", "trace", "write"]

_WRITERS: dict[TargetFormat, Callable[[Job, Splits], None]] = {
    "coco": coco.write,
    "yolo": yolo.write,
    "labelme": labelme.write,
    "voc": voc.write,
    "png": png.write,
    "coco-panoptic": coco_panoptic.write,
    "cvat": cvat.write,
    "labelstudio": labelstudio.write,
    "via": via.write,
    "datumaro": datumaro.write,
    "supervisely": supervisely.write,
    "cityscapes": cityscapes.write,
}


_NUMBERED = ("coco", "coco-panoptic", "png", "yolo")
"""Formats that tell classes apart by numbers; in the others two of one name get their ids behind it."""


def convert(
    src: str | Path, dst: str | Path, to: TargetFormat, progress: bool = False, allow_outside: bool = False
) -> dict[str, int]:
    """Write the data set ``src`` in another format to the new folder ``dst``.

    Returns counts of ``images``, ``objects``, ``crowds left out`` and ``problems`` (of the source, see
    `maskkit.data.check`; images with an error are left out), and of everything that was lost or changed. The folder
    appears when it is complete. ``allow_outside`` is as in `open_dataset`. Raises `DataError` if ``dst`` is not empty
    or cannot be written, if ``src`` cannot be read or has no usable image, and if the format cannot hold its labels at
    all, such as image tags.
    """
    require_new(dst, to)
    opened = {name: open_dataset(src, name, allow_outside) for name in find_splits(src) or [""]}
    return write(same_classes(opened), dst, to, progress)


def require_new(dst: str | Path, to: str) -> None:
    """Raise `DataError` for a folder that is not empty, and for a format without a writer."""
    dst = Path(dst)
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise DataError(f"{dst}: is not empty; choose another folder, or empty this one")
    if to not in _WRITERS:
        raise DataError(f"{to!r} is no format to write; choose one of {', '.join(_WRITERS)}")


def write(datasets: Splits, dst: str | Path, to: TargetFormat, progress: bool = False) -> dict[str, int]:
    """Write open data sets, which have the same classes, by the names of their splits (empty if there is only one).

    Returns the counts of `convert`; the folder appears when it is complete. Raises `DataError` as `convert` does.
    """
    require_new(dst, to)
    dst, source = Path(dst).absolute(), next(iter(datasets.values())).source
    job = Job(new_folder(dst), to, progress)
    if not any(len(dataset.categories) for dataset in datasets.values()):
        raise DataError(f"{source}: has no class and no object, so there is nothing to convert; add labels")
    categories = next(iter(datasets.values())).categories
    if to not in _NUMBERED:
        changed = (title != name for title, name in zip(categories.titles, categories.names, strict=True))
        job.counts["names of classes that became others"] += sum(changed)
    job.problems |= {problem for dataset in datasets.values() for problem in dataset.problems}
    try:
        job.root.mkdir(parents=True)
        remove_abandoned(dst)
        _WRITERS[to](job, datasets)
        if not job.counts["images"]:
            count = len(job.problems)
            raise DataError(f"{source}: has no usable image, {count} problems; list them: maskkit check {source}")
        os.replace(job.root, dst)
    except FileError:
        raise
    except OSError as error:
        raise DataError(explain(error, dst)) from error
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: a class has a name that is no text ({error.object!r}); rename it") from error
    finally:
        shutil.rmtree(job.root, ignore_errors=True)  # safe: this call created it, under a new name
    return job.result()
