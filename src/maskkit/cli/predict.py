"""`maskkit predict`: segment images and write overlays and COCO results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from tyro.conf import Positional, arg

from maskkit.cli.console import progress, wrong_usage
from maskkit.cli.image_files import complain_of, image_files
from maskkit.cli.options import Fetch
from maskkit.cli.predict_cluster import predict_on_cluster
from maskkit.cli.predict_video import clip_of, predict_video
from maskkit.config import Tta
from maskkit.errors import DataError, FileError, MaskkitError, explain
from maskkit.files import digest
from maskkit.geometry.windows import OVERLAP
from maskkit.ranges import Batch, Count, Pixels, Positive, Share, Weight
from maskkit.terminal import say

if TYPE_CHECKING:
    from maskkit.api import Segmenter
    from maskkit.eval.rows import Row
    from maskkit.eval.truth_ids import TruthIds
    from maskkit.infer.draw import Style
    from maskkit.infer.predict import Failure
    from maskkit.infer.results import Results
    from maskkit.infer.selection import Selection
    from maskkit.infer.sources import Item
    from maskkit.prediction import ImageId, Prediction


def predict(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE ...")],
    model: str = "built-in",
    out: str = "runs/predict",
    data: Path | None = None,
    resume: bool = False,
    device: str | None = None,
    threads: Count | None = None,
    score: Share | None = None,
    classes: tuple[str, ...] = (),
    max_objects: Count | None = None,
    max_overlap: Share = 1.0,
    boxes: bool = True,
    labels: bool = True,
    colours: Literal["object", "class"] = "object",
    batch: Batch = 1,
    tile: Pixels | None = None,
    overlap: Share = OVERLAP,
    megapixels: Positive | None = None,
    track: bool = False,
    every: Count = 1,
    start: Weight = 0.0,
    stop: Positive | None = None,
    cluster: bool = False,
    workers: Count | None = None,
    results: Literal["parquet", "coco"] = "parquet",
    tta: Tta = Tta(),  # noqa: B008 (frozen)
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Segment images: write overlays, predictions.json (COCO results), images.json and categories.json (its ids).

    A semantic model also writes labels/, PNGs whose values are class numbers. A panoptic model also writes
    panoptic.json and panoptic/ in COCO's panoptic format.

    Each image is written as soon as it is predicted, its rows to predictions.jsonl. Images that cannot be read are
    listed at the end and do not stop the others. The files of an earlier run in the same folder are removed, unless
    --resume is given.

    Example: maskkit predict photo.jpg holiday/ "scans/*.png" --out found --score 0.5

    Example: maskkit predict crates/ --out found --max-overlap 0.7 --colours class --no-boxes

    Example: maskkit predict slide.tif --model runs/nuclei/best.safetensors --tile 1024

    Example: maskkit predict clip.mp4 --track

    For a video, one at a time, the result is a video with the objects drawn, clip.mp4, and rows with the number of the
    frame (and track_id with --track). With --track, --every, --start or --stop, a folder of images is a video too.

    Args:
        sources: Images, folders or glob patterns; or a video file, or the number of a camera (0).
        model: Checkpoint, exported file (.onnx, .xml, .pt2), built-in for the model in the package, or a preset whose
            published weights are downloaded: maskkit models --weights.
        out: Folder to write to; with --cluster also an address (s3://bucket/found).
        data: Ground truth of the images. The results get its ids, of images by file name and of classes by name, so
            that maskkit eval --predictions can evaluate them. Without it images are numbered from 1.
        resume: Continue the run in the folder: images that are done are skipped.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        threads: Processor cores of the network; by default all. Of several images, or frames of a file, up to four are
            predicted at the same time, each on its share of them.
        score: Leave out objects below this score. By default the threshold with the highest F1 on the validation images
            of the training; 0.3 for weights from elsewhere.
        classes: Keep only objects of these classes.
        max_objects: Keep at most this many objects of each image, those with the highest scores.
        max_overlap: Of objects that overlap more than this (intersection over union) keep the best, whatever their
            classes; 1 keeps all. For objects that are found as several classes.
        boxes: Draw boxes.
        labels: Draw names and scores.
        colours: One colour for each object, or for each class.
        batch: Images per forward pass; with --tile, tiles of one image. More than one is faster on a GPU only.
        tile: Cut large images into tiles with this many rows and columns, and merge the results.
        overlap: Share of a tile that its neighbours see too, below 0.5. Objects larger than it are merged from parts.
        megapixels: Largest number of pixels of an image, in millions; by default 179, because a small file could fill
            the memory. With --tile, a tiled TIFF has no such limit (maskkit[tiff]).
        track: Follow the objects of a video: each keeps its track_id and its colour.
        every: Predict every n-th frame of a video.
        start: Start of the part of a video to predict, in seconds.
        stop: End of that part, in seconds.
        cluster: Predict with Ray Data on all cores, or on the cluster at RAY_ADDRESS. Sources may be addresses and
            Parquet tables too; the results are parts/*.parquet in --out, without overlays (docs/scale.md).
        workers: Number of worker processes with --cluster, each with --threads cores (1), or a GPU (--device cuda); by
            default as many as fit.
        results: What --cluster writes at the end: Parquet files only, or also predictions.json (COCO).
        tta: Test-time augmentation, for semantic models.
        fetch: Downloads.
    """
    if not sources:
        wrong_usage("predict takes at least one image, folder or pattern")
    fetch.apply()
    from maskkit.api import find_weights
    from maskkit.cluster.ray_batch import Pool
    from maskkit.engine.lock import Lock
    from maskkit.infer.draw import Style
    from maskkit.infer.results import Results
    from maskkit.infer.selection import Selection
    from maskkit.infer.video import is_camera

    failures: list[Failure] = []
    clip = clip_of(sources, track, every, start, stop)
    if clip is not None and (data is not None or resume):
        wrong_usage("--data and --resume are for images, not for videos")
    if cluster and (clip is not None or data is not None or not (boxes and labels and colours == "object")):
        wrong_usage("--cluster takes images, numbers them, and draws nothing: leave videos, --data and colours out")
    if not cluster and (workers is not None or results != "parquet" or "://" in out):
        wrong_usage("--workers, --results and an address as --out are for --cluster")
    if results == "coco" and "://" in out:
        wrong_usage("--results coco takes a folder as --out, not an address")
    paths = image_files(sources, failures) if clip is None and not cluster else []
    folder = Path(out)
    overlays = folder / "overlays"
    if overlays.resolve() in {parent.resolve() for parent in {path.parent for path in paths}}:
        raise MaskkitError(f"{overlays}: overlays would overwrite the images; choose another --out")
    threads = threads or (1 if cluster else None)
    made = partial(_segmenter, model, threads=threads, tile=tile, overlap=overlap, tta=tta, megapixels=megapixels)
    several = len(paths) > 1 or (clip is not None and not is_camera(sources[0]))  # a camera's frames come one by one
    segmenter = made("cpu" if cluster else device, throughput=several)
    score = segmenter.score if score is None else score
    selection = Selection(classes, max_objects, max_overlap)
    selection.check(segmenter.categories, segmenter.task_name)
    if clip is not None:
        style = Style(boxes, labels, colours)
        return predict_video(segmenter, sources[0], folder, clip, track, selection, style, score, batch)
    truth = _truth_ids(data, paths, segmenter) if data is not None else None
    settings = {
        "model": model,
        "weights": digest(find_weights(model)),
        "data": str(data) if data is not None else None,
        "score": score,
        "classes": classes,
        "max_objects": max_objects,
        "max_overlap": max_overlap,
        "tile": tile,
        "overlap": overlap if tile is not None else None,
        "tta": str(tta),
    }
    if cluster:
        gpus = 1 if (device or "").startswith("cuda") else 0
        pool = Pool(workers, threads or 1, gpus)
        load = partial(made, "cuda" if gpus else device)  # Ray shows each worker its own GPU alone
        coco = results == "coco"
        return predict_on_cluster(
            segmenter, load, sources, settings, out, pool, selection=selection, batch=batch, coco=coco, resume=resume
        )
    lock = Lock(folder)
    lock.take()
    try:
        stored = Results(folder, settings, resume)
        run = _Run(segmenter, selection, Style(boxes, labels, colours), truth, stored, failures)
        run.images(paths, score, batch)
        run.finish()
    finally:
        lock.free()
    return 1 if failures else 0


def _segmenter(
    model: str,
    device: str | None,
    threads: int | None,
    tile: int | None,
    overlap: float,
    tta: Tta,
    megapixels: float | None,
    throughput: bool = False,
) -> Segmenter:
    """The model with the options of the command, in this process or in a worker."""
    from maskkit.api import load
    from maskkit.data.images import allow_megapixels

    if megapixels is not None:
        allow_megapixels(megapixels)
    segmenter = load(model, device, threads, throughput).with_tta(tta)
    return segmenter if tile is None else segmenter.with_tiles(tile, overlap)


class _Run:
    """The predictions of one command, from the first image to the files at the end."""

    def __init__(
        self,
        segmenter: Segmenter,
        selection: Selection,
        style: Style,
        truth: TruthIds | None,
        results: Results,
        failures: list[Failure],
    ) -> None:
        self.segmenter, self.selection, self.style = segmenter, selection, style
        self.truth, self.results, self.failures = truth, results, failures
        self.kept = len(results)
        """Images that an earlier run has done."""
        self.seconds = self.score = 0.0
        if results.removed:
            say(f"{results.removed} overlays of an earlier run were removed from {results.overlays}")
        if others := results.foreign():
            say(f"{others} files in {results.overlays} are not of this run; they are left as they are")

    def images(self, paths: list[Path], score: float, batch: int) -> None:
        """Predict and write the images that are not done. A ``KeyboardInterrupt`` gets a message on how to continue."""
        began = time.monotonic()
        self.score = score
        try:
            with self.results, progress() as bars:
                bar = bars.add_task("predicting", total=len(paths))

                def failed(failure: Failure) -> None:
                    self.failures.append(failure)
                    bars.advance(bar)

                items = self._left(paths, lambda: bars.advance(bar))
                predictor = self.segmenter.predictor
                for prediction in predictor.predict(
                    items, batch=batch, workers=1, score=score, failed=failed, pixels=True
                ):  # reading, the network and what follows, each in its thread
                    self._write(self.selection(prediction))
                    bars.advance(bar)
        except KeyboardInterrupt as error:
            error.args = (
                f"interrupted after {len(self.results)} of {len(paths)} images; they are kept in "
                f"{self.results.folder}: go on with the same command and --resume",
            )
            raise
        except OSError as error:
            raise FileError(
                f"{explain(error, self.results.path)}; {len(self.results)} images are kept, go on with --resume"
            ) from None
        self.seconds = time.monotonic() - began

    def finish(self) -> None:
        """Write the results files of the task; print what was found and what failed."""
        from maskkit.eval.rows import StoredRows
        from maskkit.files import write_json

        results, task, left_out = self.results, self.segmenter.task, 0

        def rows() -> Iterator[list[Any]]:
            for _, found in results.read():
                yield self.truth.rows(cast("list[Row]", found)) if self.truth is not None else found

        count = results.rows
        if self.truth is not None:
            count = sum(map(len, rows()))
            left_out = results.rows - count
        categories = self.truth.categories if self.truth is not None else self.segmenter.categories
        task.write_results(results.folder, StoredRows(rows, count), results.images(), categories)
        write_json(results.folder / "images.json", results.images())
        if left_out:
            say(f"{left_out} {task.noun} of classes that the data lack are drawn, but left out of the results")
        done = len(results) - self.kept
        speed = f", {done / self.seconds:.1f} images/s" if done and self.seconds else ""
        earlier = f" ({self.kept} of them done before)" if self.kept else ""
        above = f" with a score above {self.score:.2f}" if task.noun == "objects" else ""
        say(
            f"{count} {task.noun} in {len(results)} images{earlier}{above}{speed}: {results.overlays} and "
            f"{results.folder / 'predictions.json'}"
        )
        complain_of(self.failures)

    def _left(self, paths: list[Path], done: Callable[[], None]) -> Iterator[Item]:
        from maskkit.infer.sources import numbered_images

        def left() -> Iterator[tuple[ImageId, Path]]:
            for number, path in enumerate(paths, 1):
                image_id = number if self.truth is None else self.truth.images[str(path)]
                if self.results.has(image_id, str(path)):
                    done()
                else:
                    yield image_id, path

        return numbered_images(left())

    def _write(self, prediction: Prediction) -> None:
        """Write the overlay first, so that an image with a line in the results is complete."""
        from maskkit.infer.draw import save
        from maskkit.infer.predict import Failure

        overlay = self.results.overlay_of(prediction.meta)
        try:
            save(prediction, overlay, self.style)
        except DataError as error:  # the image has vanished or changed
            self.failures.append(Failure(prediction.meta.path, error))
            return
        self.results.add(prediction.meta, overlay, prediction.to_coco())


def _truth_ids(data: Path, paths: list[Path], segmenter: Segmenter) -> TruthIds:
    """The ids of the ground truth in ``data``, of its validation split where it has one."""
    from maskkit.eval.truth_ids import TruthIds

    dataset = segmenter.task.open(data, "val", images=False)
    return TruthIds.of(segmenter.task.view(dataset), paths, segmenter.categories)
