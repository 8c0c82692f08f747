"""`maskkit predict`: segment images and write overlays and COCO results."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from maskkit.cli.console import progress, wrong_usage
from maskkit.config import Tta
from maskkit.errors import DataError, MaskkitError
from maskkit.ranges import Count, Share
from maskkit.terminal import complain, say

if TYPE_CHECKING:
    from maskkit.api import Segmenter
    from maskkit.eval.truth_ids import TruthIds
    from maskkit.infer.predict import Failure


def predict(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE ...")],
    model: str = "built-in",
    out: Path = Path("runs/predict"),
    data: Path | None = None,
    score: Share = 0.3,
    batch: Count = 1,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
) -> int:
    """Segment images: write overlays, predictions.json (COCO results), images.json and categories.json (its ids).

    A semantic model also writes labels/, PNGs whose values are class numbers. A panoptic model also writes
    panoptic.json and panoptic/ in COCO's panoptic format.

    Images that cannot be read are listed at the end and do not stop the others.

    Example: maskkit predict photo.jpg holiday/ "scans/*.png" --out found --score 0.5

    Args:
        sources: Images, folders or glob patterns.
        model: Checkpoint, or built-in for the model in the package.
        out: Folder to write to.
        data: Ground truth of the images. The results get its ids, of images by file name and of classes by name, so
            that they can be measured with maskkit eval --predictions. Without it images are numbered from 1.
        score: Leave out objects below this score.
        batch: Images per forward pass.
        tta: Test-time augmentation, for semantic models.
    """
    if not sources:
        wrong_usage("predict takes at least one image, folder or pattern")
    from maskkit.api import load
    from maskkit.files import in_file_name, write_json

    failures: list[Failure] = []
    paths = _images(sources, failures)
    overlays = out / "overlays"
    if overlays.resolve() in {p.parent.resolve() for p in paths}:
        raise MaskkitError(f"{overlays}: overlays would overwrite the images; choose another --out")
    rows: list[Any] = []
    images: dict[str, dict[str, Any]] = {}
    segmenter = load(model).with_tta(tta)
    truth = _truth_ids(data, paths, segmenter) if data is not None else None
    found = segmenter.predict_many(paths, score, batch, failures.append)
    with progress() as bars:
        for prediction in bars.track(found, len(paths), description="predicting"):
            if truth is not None:
                prediction.meta = replace(prediction.meta, image_id=truth.images[prediction.meta.path])
            meta = prediction.meta
            name = Path(meta.path).stem + ".jpg"
            while name in images:
                name = f"{in_file_name(meta.image_id)}-{name}"
            prediction.save(overlays / name)
            images[name] = {"id": meta.image_id, "file_name": meta.path, "height": meta.size[0], "width": meta.size[1]}
            rows += prediction.to_coco()
    categories = segmenter.categories
    if truth is not None:
        everything, rows, categories = len(rows), truth.rows(rows), truth.categories
        if left_out := everything - len(rows):
            say(f"{left_out} {segmenter.task.noun} of classes that {data} lacks are drawn, but left out of the results")
    segmenter.task.write_results(out, rows, images.values(), categories)
    write_json(out / "images.json", list(images.values()))
    say(f"{len(rows)} {segmenter.task.noun} in {len(images)} images: {overlays} and {out / 'predictions.json'}")
    for failure in failures:
        complain(failure.error)
    if failures:
        complain(f"{len(failures)} sources failed")
    return 1 if failures else 0


def _truth_ids(data: Path, paths: list[Path], segmenter: Segmenter) -> TruthIds:
    """The ids of the ground truth in ``data``: of its validation images where it has a split of them."""
    from maskkit.data import find_splits, open_truth
    from maskkit.eval.truth_ids import TruthIds

    dataset = open_truth(data, "val" if "val" in find_splits(data) else None)
    return TruthIds.of(segmenter.task.view(dataset), paths, segmenter.categories)


def _images(sources: Iterable[str], failures: list[Failure]) -> list[Path]:
    """The image files of ``sources`` (images, folders, patterns); sources without any are added to ``failures``."""
    from maskkit.data.files import matching
    from maskkit.data.images import list_images
    from maskkit.infer.predict import Failure

    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = (listed := list_images(path)).images
            if note := listed.note():
                complain(f"{path}: {note}")
        elif path.exists() or not glob.has_magic(source):
            found = [path]  # a missing file fails when it is read
        else:
            found = matching(source)
        if not found:
            failures.append(Failure(source, DataError(f"{source}: contains no image; check the path")))
        paths += found
    return paths
