"""`maskkit prelabel`: predictions as labels that people correct in a labelling tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from maskkit.cli.console import progress, wrong_usage
from maskkit.cli.image_files import complain_of, image_files
from maskkit.cli.options import Fetch
from maskkit.data.target_formats import TargetFormat
from maskkit.geometry.windows import OVERLAP
from maskkit.ranges import Batch, Count, Pixels, Share
from maskkit.terminal import say

if TYPE_CHECKING:
    from maskkit.api import Segmenter
    from maskkit.data.dataset import Dataset
    from maskkit.data.records import Record
    from maskkit.infer.predict import Failure
    from maskkit.infer.selection import Selection
    from maskkit.infer.teaching_order import Place


def prelabel(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGES ...")],
    to: TargetFormat,
    model: str = "built-in",
    out: Path = Path("runs/prelabel"),
    from_: Annotated[Literal["images", "boxes", "tags"], arg(name="from")] = "images",
    order: Literal["name", "uncertain"] = "name",
    count: Count | None = None,
    iou: Share = 0.95,
    score: Share | None = None,
    classes: tuple[str, ...] = (),
    max_objects: Count | None = None,
    max_overlap: Share = 1.0,
    tile: Pixels | None = None,
    overlap: Share = OVERLAP,
    batch: Batch = 1,
    device: str | None = None,
    threads: Count | None = None,
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Label images with a model, for a labelling tool: people correct the labels instead of drawing them.

    The images are copied to OUT with their labels, in the format of --to. Once they are corrected, maskkit train reads
    them. Masks become polygons with few corners; holes are kept.

    Example: maskkit prelabel photos/ --model runs/pets/best.safetensors --to cvat --out pets-to-correct

    Example: maskkit prelabel photos/ --to labelstudio --order uncertain --count 50

    Example: maskkit prelabel boxes/ --from boxes --model runs/boxes/best.safetensors --to cvat

    Args:
        sources: Images, folders or glob patterns.
        to: Format to write: cvat, labelstudio, coco, labelme, ...
        model: As in maskkit predict.
        out: Folder to create.
        from_: What is known already. boxes: IMAGES is a data set; its boxes keep their position and class, and a model
            adds masks: the built-in one, or one that was trained on them (maskkit train --labels boxes). tags:
            IMAGES is a data set whose images have classes; an EPS model (maskkit pseudo-masks) finds the pixels of
            each.
        order: Order of the images in the file. uncertain: first the images whose labels should teach the model most,
            since it is uncertain about many objects and they differ from the images before; order.csv has both figures.
        count: Label only this many images, the first ones.
        iou: A polygon has at least this intersection over union with the mask of the model; 1 follows every pixel.
        score: As in maskkit predict: objects below this score are not labelled.
        classes: Label only objects of these classes.
        max_objects: Label at most this many objects of each image, those with the highest scores.
        max_overlap: Of objects that overlap more than this (intersection over union) label the best, whatever their
            classes; 1 labels all.
        tile: Cut large images into tiles with this many rows and columns.
        overlap: Share of a tile that its neighbours see too, below 0.5.
        batch: Images per forward pass.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        threads: Processor cores of the network; by default all. Of several images up to four are predicted at the same
            time, each on its share of them.
        fetch: Downloads.
    """
    if not sources:
        wrong_usage("prelabel takes at least one image, folder or pattern")
    fetch.apply()
    from maskkit.api import load
    from maskkit.data.convert import require_new, write
    from maskkit.errors import DataError, MaskkitError
    from maskkit.infer.prelabel import as_dataset
    from maskkit.infer.selection import Selection
    from maskkit.infer.teaching_order import write_order

    require_new(out, to)
    if from_ != "images":
        data, *others = sources
        chosen = order != "name" or max_overlap < 1 or any(v is not None for v in (count, score, max_objects, tile))
        if others or classes or chosen:
            wrong_usage(
                f"--from {from_} labels what is known of one data set: --order, --count, --score, --classes, "
                "--max-objects, --max-overlap and --tile are for images"
            )
        return _label_dataset(Path(data), from_, to, out, model, iou, batch, device, threads)
    failures: list[Failure] = []
    paths = image_files(sources, failures)
    segmenter = load(model, device, threads, throughput=len(paths) > 1)
    if tile is not None:
        segmenter = segmenter.with_tiles(tile, overlap)
    if order == "uncertain" and segmenter.task_name == "semantic":
        raise MaskkitError(
            "--order uncertain takes a model that scores what it finds; this one gives every pixel a class"
        )
    selection = Selection(classes, max_objects, max_overlap)
    selection.check(segmenter.categories, segmenter.task_name)
    run = _Run(segmenter, selection, segmenter.score if score is None else score, iou)
    if order == "name" and count is not None:
        paths = paths[:count]
    places = run.images(paths, batch, order == "uncertain", failures)[:count]
    if not places:
        complain_of(failures)
        raise DataError(f"{', '.join(sources)}: has no image that can be read; check the path")
    dataset = as_dataset([run.records[p.index] for p in places], segmenter.categories, Path(sources[0]))
    counts = write({"": dataset}, out, to)
    if order == "uncertain":
        write_order(out / "order.csv", places, [(str(r.path), len(r.annotations)) for r in run.records])
    say(f"{out}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    complain_of(failures)
    return 1 if failures or counts["problems"] else 0


def _label_dataset(
    data: Path,
    known: Literal["boxes", "tags"],
    to: TargetFormat,
    out: Path,
    model: str,
    iou: float,
    batch: int,
    device: str | None,
    threads: int | None,
) -> int:
    """Masks for a data set that has boxes or tags. Raises `MaskkitError`."""
    from maskkit.data import find_splits, open_dataset
    from maskkit.data.convert import write
    from maskkit.data.convert.regions import same_classes

    opened = same_classes({split: open_dataset(data, split) for split in find_splits(data) or [""]})
    with progress() as bars:
        bar = bars.add_task("labelling", total=sum(map(len, opened.values())))
        make = (
            _of_boxes(model, iou, batch, device, threads) if known == "boxes" else _of_tags(model, iou, device, threads)
        )
        labelled = {split: make(dataset, lambda: bars.advance(bar)) for split, dataset in opened.items()}
    counts = write(labelled, out, to)
    say(f"{out}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    bare = sum(a.segmentation is None for d in labelled.values() for r in d.records for a in r.annotations)
    if bare:
        say(f"{bare} boxes have no mask: the model finds nothing with nearly the same box")
    return 1 if counts["problems"] else 0


def _of_boxes(
    model: str, iou: float, batch: int, device: str | None, threads: int | None
) -> Callable[[Dataset, Callable[[], None]], Dataset]:
    """Fills the boxes of a data set with masks."""
    from maskkit.api import load
    from maskkit.errors import MaskkitError

    segmenter = load(model, device, threads)
    if segmenter.task_name != "instance":
        raise MaskkitError(
            f"--from boxes takes a model that finds objects with masks; {model} is a {segmenter.task_name} model"
        )

    def fill(dataset: Dataset, done: Callable[[], None]) -> Dataset:
        records = []
        for record in filled(segmenter, dataset, iou, batch):
            records.append(record)
            done()
        return replace(dataset, records=records)

    return fill


def filled(segmenter: Segmenter, dataset: Dataset, iou: float, batch: int = 1) -> Iterator[Record]:
    """The images with masks in their boxes: drawn in them by a model that can, else of what is found in nearly the same
    boxes."""
    if segmenter.config is not None:  # not an exported file, beside which torch may be missing
        from maskkit.infer.in_boxes import fill_all, masks_in_boxes
        from maskkit.infer.torch_runtime import TorchRuntime

        runtime = segmenter.runtime
        if isinstance(runtime, TorchRuntime) and runtime.model.draws_in_boxes:
            for index, record in enumerate(dataset.records):
                yield fill_all(record, masks_in_boxes(runtime, segmenter.input, dataset, index), iou)
            return
    from maskkit.infer.prelabel import LEAST_SCORE, fill_boxes

    found = segmenter.predictor.dataset(dataset, batch=batch, score=LEAST_SCORE)
    for record, prediction in zip(dataset.records, found, strict=True):
        yield fill_boxes(record, prediction, dataset.categories, iou)


def _of_tags(
    model: str, iou: float, device: str | None, threads: int | None
) -> Callable[[Dataset, Callable[[], None]], Dataset]:
    """Labels the pixels of the classes that each image of a data set has."""
    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.checkpoints.find import find_weights
    from maskkit.config import PseudoMasks
    from maskkit.errors import MaskkitError
    from maskkit.infer.prelabel import Labeller, as_dataset, candidates
    from maskkit.infer.pseudo_labels import learns_from_tags, pseudo_masks
    from maskkit.infer.torch_runtime import find_device

    where = find_device(device)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    found = load_model(find_weights(model))
    if not learns_from_tags(found.model):
        raise MaskkitError(f"--from tags takes a model that was trained on tags (EPS); {model} was not")
    found.model.to(where)
    labeller = Labeller(0.0, iou)

    def label(dataset: Dataset, done: Callable[[], None]) -> Dataset:
        known = dataset.as_semantic().with_categories(found.categories)
        records = []
        for prediction in pseudo_masks(found.model, known, found.config.input, PseudoMasks()):
            records.append(labeller.record(prediction.meta, candidates(prediction)))
            done()
        return as_dataset(records, known.categories, dataset.source)

    return label


class _Run:
    """The images of one command, with their labels."""

    def __init__(self, segmenter: Segmenter, selection: Selection, score: float, iou: float) -> None:
        from maskkit.infer.prelabel import Labeller

        self.segmenter, self.selection, self.score = segmenter, selection, score
        self.labeller = Labeller(score, iou)
        self.records: list[Record] = []

    def images(self, paths: list[Path], batch: int, ordered: bool, failures: list[Failure]) -> list[Place]:
        """Label all images that can be read; gives their order."""
        from maskkit.infer import teaching_order as teaching
        from maskkit.infer.prelabel import candidates
        from maskkit.infer.sources import numbered_images

        least = self.score * teaching.LEAST if ordered else self.score
        doubts, looks = [], []
        with progress() as bars:
            bar = bars.add_task("labelling", total=len(paths))
            items = numbered_images(enumerate(paths, 1))
            found = self.segmenter.predictor.predict(items, batch=batch, score=least, failed=failures.append)
            for prediction in map(self.selection, found):
                all_found = list(candidates(prediction))
                if ordered:
                    looks.append(teaching.appearance(Path(prediction.meta.path)))
                    doubts.append(teaching.doubt([c.score for c in all_found], self.score))
                self.records.append(self.labeller.record(prediction.meta, all_found))
                bars.advance(bar)
        if ordered:
            return teaching.teaching_order(doubts, looks)
        return [teaching.Place(i, 0.0, 1.0) for i in range(len(self.records))]
