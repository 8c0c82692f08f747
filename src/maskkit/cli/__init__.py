"""The command line: one function per verb, its options read from its signature by tyro.

Exit codes: 0 done, 1 failed (one clear line on stderr), 2 wrong usage, 130 interrupted. Verbs import what they need
when they run, so that `maskkit --help` needs no torch.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

import maskkit
from maskkit.config import (
    AugmentConfig,
    DataConfig,
    InputConfig,
    ModelConfig,
    Pretraining,
    PseudoMasks,
    RunConfig,
    TrainConfig,
    Tta,
)
from maskkit.errors import DataError, MaskkitError

if TYPE_CHECKING:
    from rich.progress import Progress

    from maskkit.infer.predict import Failure

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code. Wrong usage and ``--help`` leave by ``SystemExit``, as command-line parsers do."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] not in VERBS:
        _show_verbs(args)
    verb, rest = args[0], args[1:]
    try:
        if verb == "train":
            return train(_train_options(rest))
        return tyro.cli(VERBS[verb], prog=f"maskkit {verb}", args=rest)
    except (MaskkitError, OSError) as error:
        print(f"maskkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("maskkit: interrupted", file=sys.stderr)
        return 130


def models() -> int:
    """List the presets: task, labels needed, paper's number, our number, published weights.

    Example: maskkit models
    """
    from rich.table import Column, Table

    from maskkit.api import BUILT_IN, find_weights
    from maskkit.checkpoints.checkpoint import read_header, run_config
    from maskkit.zoo import registry

    table = Table(Column("preset", no_wrap=True), "task", "labels", "paper", "ours", "published weights")
    for preset in registry.presets():
        kind = registry.model_class(preset.name)
        labels = " or ".join(sorted(kind.supervision_of(preset.model)))
        table.add_row(
            preset.name,
            kind.task_of(preset.model),
            labels,
            preset.paper or "-",
            preset.ours or "-",
            preset.published or "-",
        )
    header = read_header(find_weights(BUILT_IN))
    config, info = run_config(header["config"]), header["info"]
    task = registry.model_class(config.preset).task_of(config.model)
    table.add_row(BUILT_IN, task, "-", "-", info.get("ours", "-"), info.get("licence", "-"))
    _stdout().print(table)
    return 0


def predict(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCE ...")],
    model: str = "built-in",
    out: Path = Path("runs/predict"),
    score: float = 0.3,
    batch: int = 1,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
) -> int:
    """Segment images: overlays, predictions.json (COCO results) and images.json (file name of each image id).

    A semantic model also writes labels/, PNGs whose values are class numbers; a panoptic one panoptic.json and
    panoptic/, COCO's panoptic results.

    Images that cannot be read are listed at the end; the others are done all the same.

    Example: maskkit predict photo.jpg holiday/ "scans/*.png" --out found --score 0.5

    Args:
        sources: Images, folders, glob patterns.
        model: Checkpoint, or built-in for the model that the package carries.
        out: Folder to write to.
        score: Objects below this score are left out.
        batch: Images that go through the network together.
        tta: Test-time augmentation of a semantic model.
    """
    if not sources:
        _wrong_usage("predict needs an image, a folder or a pattern")
    if batch < 1:
        _wrong_usage("--batch is 1 at least")
    from maskkit.api import load
    from maskkit.files import write_json

    failures: list[Failure] = []
    paths = _images(sources, failures)
    overlays = out / "overlays"
    if overlays.resolve() in {p.parent.resolve() for p in paths}:
        raise MaskkitError(f"{overlays}: overlays would overwrite the images; choose another --out")
    rows: list[dict[str, Any]] = []
    images: dict[str, dict[str, Any]] = {}
    segmenter = load(model).with_tta(tta)
    found = segmenter.predict_many(paths, score, batch, failures.append)
    with _progress() as bars:
        for prediction in bars.track(found, len(paths), description="predicting"):
            meta = prediction.meta
            name = Path(meta.path).stem + ".jpg"
            while name in images:
                name = f"{meta.image_id}-{name}"
            prediction.save(overlays / name)
            images[name] = {"id": meta.image_id, "file_name": meta.path, "height": meta.size[0], "width": meta.size[1]}
            rows += prediction.to_coco()
    segmenter.task.write_results(out, rows, images.values(), segmenter.categories)
    write_json(out / "images.json", list(images.values()))
    print(f"{len(rows)} {segmenter.task.noun} in {len(images)} images: {overlays} and {out / 'predictions.json'}")
    for failure in failures:
        print(f"maskkit: {failure.error}", file=sys.stderr)
    if failures:
        print(f"maskkit: {len(failures)} failed", file=sys.stderr)
    return 1 if failures else 0


def evaluate(
    data: Path,
    model: str | None = None,
    predictions: Path | None = None,
    task: Literal["instance", "semantic", "panoptic", "proposals"] = "instance",
    split: str | None = None,
    out: Path = Path("runs/eval"),
    batch: int = 1,
    workers: int = 0,
    tta: Tta = Tta(),  # noqa: B008 (frozen)
) -> int:
    """Measure a model, or a COCO results file of any tool: AP, mIoU or PQ table, metrics.json, report.html.

    Example: maskkit eval --model runs/pets/best.safetensors --data pets/

    Example: maskkit eval --predictions results.json --data pets/val.json

    Args:
        data: Folder or annotation file, of any format.
        model: Checkpoint, or built-in. Its classes are matched with those of the data by name.
        predictions: COCO results file, instead of a model.
        task: What a results file is measured as; a model knows its own.
        split: Part of a folder: train, val or test; val where there is one, else all of it.
        out: Folder to write to.
        batch: Images that go through the network together.
        workers: Loader processes.
        tta: Test-time augmentation of a semantic model.
    """
    if (model is None) == (predictions is None):
        _wrong_usage("eval needs either --model or --predictions")
    if batch < 1:
        _wrong_usage("--batch is 1 at least")
    from maskkit.data import find_splits, open_dataset
    from maskkit.eval.task import TASKS

    splits = find_splits(data)
    dataset = open_dataset(data, split or ("val" if "val" in splits else None))
    if left_out := [p for p in dataset.problems if p.level == "error"]:
        print(f"{len(left_out)} bad records are left out; see them: maskkit check {data}", file=sys.stderr)
    if model is not None:
        from maskkit.api import load

        segmenter = load(model).with_tta(tta)
        judge = segmenter.task
        with _progress() as bars:
            bar = bars.add_task("predicting", total=len(dataset))
            rows, dataset = segmenter.detect(dataset, batch, workers, lambda done: bars.advance(bar, done))
        judge.write_results(out, rows, dataset.coco_images(), dataset.categories)
    else:
        assert predictions is not None
        judge = TASKS[task]
        dataset = judge.view(dataset)
        rows = judge.read_results(predictions, dataset)
    result = judge.evaluate(rows, dataset)
    result.save(out / "metrics.json")
    judge.write_report(out / "report.html", result, rows, dataset, title=f"{model or predictions} on {data}")
    _stdout().print(result.table())
    print(f"{len(dataset)} images, {len(dataset.categories)} classes: {out / 'report.html'}")
    return 0


def check(
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    out: Path | None = None,
    samples: int = 8,
    decode: bool | None = None,
) -> int:
    """Examine a data set: every bad record and image, what is in it, drawn samples. Fails when there are errors.

    Example: maskkit check pets/ --out pets-samples

    Args:
        data: Folder or annotation file, of any format.
        out: Folder for drawn samples; none are drawn when not given.
        samples: How many images of each split are drawn.
        decode: Whether every pixel is read, or headers alone; pixels up to 5000 images when not given.
    """
    from maskkit.data import check

    report = check.check(data, decode, progress=sys.stderr.isatty())
    report.print(_stdout())
    if out is not None:
        for split, dataset in report.datasets.items():
            files = check.save_samples(dataset, out / split, samples)
            print(f"{len(files)} samples of {split}: {out / split}")
    return 1 if report.errors else 0


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    to: Literal["coco", "yolo", "labelme"],
) -> int:
    """Write a data set of any format in another one: images, splits and objects.

    Example: maskkit convert pets/ pets-yolo/ --to yolo

    Args:
        src: Folder or annotation file.
        dst: New folder.
        to: Format to write.
    """
    from maskkit.data.convert import convert

    counts = convert(src, dst, to, progress=sys.stderr.isatty())
    print(f"{dst}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["problems"]:
        print(f"problems leave records out; see them all: maskkit check {src}")
    return 0


def pseudo_masks(
    data: Path,
    labels: Literal["tags"] = "tags",
    saliency: Path | None = None,
    model: str = "eps-mobilenetv2-320",
    out: Path = Path("runs/pseudo-masks"),
    weights: str | None = None,
    steps: int | None = None,
    views: PseudoMasks = PseudoMasks(),  # noqa: B008 (frozen)
) -> int:
    """Make masks of image tags and saliency (EPS): a data set of label images, on which any semantic model trains.

    Tags are the classes of boxes, masks or label images, the rows of a tags.csv, or the names of folders.

    Example: maskkit pseudo-masks --data pets/ --labels tags --saliency pets-saliency/ --out pets-masks

    Example: maskkit pseudo-masks --data pets/ --model runs/eps-mobilenetv2-320/best.safetensors --out pets-masks

    Args:
        data: Folder or annotation file; its train split where it has one.
        labels: What the masks are made of: which classes an image shows.
        saliency: Folder of grey images named as the images, or a checkpoint of any model, whose finds they become.
        model: Checkpoint of a model of tags, or a preset, which is trained first, in OUT/run.
        out: Folder to write to.
        weights: What the training starts from, as in maskkit train.
        steps: Optimizer steps of the training; those of the preset when not given.
        views: How the model looks at each image.
    """
    from maskkit.api import find_weights
    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.data import find_splits, open_dataset
    from maskkit.engine.pseudo import train_on_tags
    from maskkit.eval.semantic.metric import evaluate
    from maskkit.infer.pseudo_labels import learns_from_tags, write_pseudo_masks
    from maskkit.infer.torch_runtime import best_device

    dataset = open_dataset(data, "train" if "train" in find_splits(data) else None)
    checkpoint = Path(model)
    if not checkpoint.is_file():
        if saliency is None:
            _wrong_usage("pseudo-masks needs --saliency to train a preset, or --model with a checkpoint")
        start = find_weights(weights, model) if weights is not None else None
        checkpoint = train_on_tags(model, data, saliency, out, start, steps)
    found = load_model(checkpoint)
    if not learns_from_tags(found.model):
        raise MaskkitError(f"{checkpoint}: does not learn from tags; give a checkpoint of EPS")
    dataset = dataset.as_semantic().with_categories(found.categories)
    found.model.to(best_device())
    with _progress() as bars:
        bar = bars.add_task("making masks", total=len(dataset))
        rows = write_pseudo_masks(found.model, dataset, found.config.input, views, out, lambda n: bars.advance(bar, n))
    print(f"{len(dataset)} images, {len(dataset.categories)} classes; train on them: maskkit train --data {out}")
    if any(r.semantic is not None and r.semantic.known for r in dataset.records):
        result = evaluate(rows, dataset)
        result.save(out / "metrics.json")
        _stdout().print(result.table())
    return 0


def pretrain(
    images: Annotated[Positional[Path], arg(metavar="FOLDER")],
    out: Path = Path("runs/pretrain"),
    resume: bool = False,
    config: Annotated[Pretraining, arg(name="")] = Pretraining(),  # noqa: B008 (frozen)
) -> int:
    """Train a backbone on images without labels (EVA): it predicts what CLIP says of the parts that it cannot see.

    Example: maskkit pretrain photos/ --student eva_tiny_patch16_224 --epochs 50 --out runs/pretrain

    Example: maskkit train --model eva-tiny-256 --data pets/ --model.backbone-weights runs/pretrain/backbone.safetensors

    Args:
        images: Folder of images; those in folders of it are used too.
        out: Folder of the run.
        resume: Go on with the run in the folder, or begin it where there is none.
        config: Student, teacher and recipe.
    """
    from maskkit.engine.pretrain import pretrain

    backbone = pretrain(images, config, out, resume)
    print(f"{backbone}: weights of {config.student}, for --model.backbone-weights")
    return 0


def import_(checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")], model: str, out: Path) -> int:
    """Convert a published checkpoint of a method's official code to a maskkit one.

    A pickle is read for its tensors only; one that would run code is refused.

    Example: maskkit import yolact_resnet50_54_800000.pth --model yolact-resnet50 --out yolact-resnet50.safetensors

    Args:
        checkpoint: File of the official code, .pth or .safetensors.
        model: Preset that it belongs to.
        out: File to write.
    """
    from maskkit.checkpoints.foreign import read_checkpoint
    from maskkit.checkpoints.hub import import_state
    from maskkit.zoo import registry

    registry.preset(model)  # an unknown one is said before the file is read
    try:
        categories = import_state(read_checkpoint(checkpoint), model, out, checkpoint.name)
    except DataError as error:
        message = str(error)
        raise DataError(message if str(checkpoint) in message else f"{checkpoint}: {message}") from None
    print(f"{out}: {model} with {len(categories)} classes; try it: maskkit predict IMAGE --model {out}")
    return 0


def demo(out: Path = Path("demo"), steps: int = 300) -> int:
    """Segment real photographs with the built-in model, then train a small one on drawn images, in minutes.

    Example: maskkit demo --out demo

    Args:
        out: Folder to write to.
        steps: Optimizer steps of the training.
    """
    from maskkit.cli.demo import run

    return run(out, steps)


@dataclass
class TrainOptions:
    """Train a preset on your own images: COCO, YOLO, Pascal VOC or LabelMe; format and class names are found.

    Every field of the preset can be changed. The run folder gets the resolved configuration, metrics.jsonl,
    best.safetensors, sample predictions and report.html.

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/ --train.epochs 50 --resume
    """

    preset: Annotated[str, arg(name="model")]
    """Preset to start from; `maskkit models` lists them."""
    model: ModelConfig
    input: InputConfig
    augment: AugmentConfig
    train: TrainConfig
    data: DataConfig
    out: Path | None = None
    """Folder of the run; runs/PRESET when not given."""
    resume: bool = False
    """Go on with the run in the folder, or begin it where there is none."""
    weights: str | None = None
    """Checkpoint or built-in, or backbone weights with timm's names, to start from; hub fetches published ones."""


def train(options: TrainOptions) -> int:
    """Train a preset on your own images.

    Example: maskkit train --model yolact-mobilenetv2-256 --data pets/
    """
    from maskkit.api import find_weights
    from maskkit.config import to_dict
    from maskkit.engine.train import train

    weights = find_weights(options.weights, options.preset) if options.weights is not None else None
    config = RunConfig(options.preset, options.model, options.input, options.augment, options.train, options.data)
    shown = to_dict(config)
    del shown["model"]["num_classes"]  # known when the data have been read
    _stdout().print_json(json.dumps(shown))
    result = train(config, options.out or Path("runs", options.preset), options.resume, weights)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    print(f"{result.best}: {numbers}; look at {result.out / 'report.html'} and {result.out / 'samples'}")
    return 0


VERBS = {
    "models": models,
    "predict": predict,
    "train": train,
    "eval": evaluate,
    "check": check,
    "convert": convert,
    "import": import_,
    "pseudo-masks": pseudo_masks,
    "pretrain": pretrain,
    "demo": demo,
}


def _show_verbs(args: list[str]) -> NoReturn:
    """The general help, the version, or what is wrong with the first word."""
    parser = argparse.ArgumentParser(
        "maskkit",
        description="Segment images, train on your own, measure.",
        epilog="Example: maskkit predict photo.jpg --out found\n\n`maskkit VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"maskkit {maskkit.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=str(verb.__doc__).splitlines()[0])
    parser.parse_args(args)
    raise AssertionError("no verb was given, so the parser has left")


def _train_options(args: list[str]) -> TrainOptions:
    """The options of `train`: those of the preset named in ``args``, changed by the rest of ``args``."""
    from maskkit.zoo import registry

    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    name = peek.parse_known_args(args)[0].model
    preset = registry.preset(name or "yolact-mobilenetv2-256")
    data = _annotated(
        DataConfig(),
        train=Annotated[str, arg(aliases=["--data"])],
        labels=Annotated[Literal["masks", "boxes", "tags"], arg(aliases=["--labels"])],
    )
    model = _annotated(preset.model, num_classes=tyro.conf.Suppress[int])  # comes from the data
    default = TrainOptions(name or tyro.MISSING, model, preset.input, preset.augment, preset.train, data)
    options = tyro.cli(TrainOptions, args=args, default=default, prog="maskkit train")
    options.model = type(preset.model)(**vars(options.model))
    options.data = DataConfig(**vars(options.data))
    if not options.data.train:
        _wrong_usage("train needs --data")
    return options


def _annotated(section: T, **hints: Any) -> T:
    """The config ``section`` as a subclass whose fields have other hints for tyro."""
    kind = type(section)
    changed = [(name, hint, field(default=getattr(section, name))) for name, hint in hints.items()]
    return make_dataclass(kind.__name__, changed, bases=(kind,), frozen=True)(**vars(section))


def _wrong_usage(message: str) -> NoReturn:
    print(f"maskkit: {message}; see --help", file=sys.stderr)
    raise SystemExit(2)


def _images(sources: Iterable[str], failures: list[Failure]) -> list[Path]:
    """The files that ``sources`` (images, folders, patterns) stand for; sources without any go to ``failures``."""
    from maskkit.data.images import find_images
    from maskkit.infer.predict import Failure

    paths: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = find_images(path)
        elif path.exists() or not glob.has_magic(source):
            found = [path]  # a missing file fails when it is read
        else:
            found = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
        if not found:
            failures.append(Failure(source, DataError(f"{source}: holds no image; check the path")))
        paths += found
    return paths


def _progress() -> Progress:
    """A progress bar on stderr, where there is a terminal to draw it on."""
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


def _stdout() -> Console:
    """The console for results; wide where lines go into a file, so that tables stay whole."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=160)
