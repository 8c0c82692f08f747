"""The Python API: `create_model`, `load`, `Segmenter`. torch is imported with the first model, not with this module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskkit import zoo
from maskkit.checkpoints.exported import SUFFIXES
from maskkit.checkpoints.find import BUILT_IN, find_weights, in_repository, initial_weights
from maskkit.config import DataConfig, InputConfig, RunConfig, Tta, change
from maskkit.errors import DataError, MaskkitError
from maskkit.files import DEMO_IMAGES
from maskkit.geometry.windows import OVERLAP
from maskkit.infer.predict import Failure, Predictor
from maskkit.prediction import Categories, Prediction
from maskkit.ranges import check_ranges

if TYPE_CHECKING:
    import torch

    from maskkit.data.dataset import Dataset
    from maskkit.decode import Decoder
    from maskkit.eval.rows import Row
    from maskkit.eval.task import Result, Task
    from maskkit.export.write import ExportConfig, Exported
    from maskkit.infer.runtimes import Runtime
    from maskkit.infer.sources import Source
    from maskkit.models.base import Model


DEFAULT_SCORE = 0.3
"""The score threshold of weights for which none was chosen on validation images."""


def create_model(preset: str, num_classes: int | None = None, **overrides: Any) -> Model:
    """A model with random weights; never downloads anything.

    ``overrides`` change fields of the method's config; a mapping changes fields of a part:
    ``backbone={"name": "resnet18"}``. Raises `MaskkitError` for an unknown preset, with the nearest names, and
    for a number out of its range, ``TypeError`` for an unknown field.
    """
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    config = change(zoo.preset(preset).model, **overrides)
    check_ranges(config, "")
    return zoo.model_class(preset)(config)


def load(
    source: str | Path = BUILT_IN,
    device: torch.device | str | None = None,
    threads: int | None = None,
    throughput: bool = False,
) -> Segmenter:
    """The `Segmenter` of a checkpoint, of the ``"built-in"`` model, of a preset whose weights can be fetched, or of a
    repository of the Hugging Face Hub, ``"hf://user/name"``, or a file in it, ``"hf://user/name/FILE"``.

    An exported file (``.onnx``, or ``.xml`` of OpenVINO) is loaded without torch. ``threads`` limits the processor
    cores of the network; for a checkpoint that sets torch's number of threads in the whole process. With
    ``throughput`` several images of `Segmenter.predict_many` or `Segmenter.evaluate` are predicted at the same time on
    a CPU, each on its share of those cores: more images per second, and more time and memory for each (``.xml`` and
    ``.pt2`` files take one at a time). ``device`` None uses an accelerator where there is one. For speed a checkpoint
    predicts with a copy whose batch norm is folded into the convolutions; ``segmenter.runtime.model`` is the model
    itself, on the CPU, and can be trained further. Raises `DataError` for a file that is missing or is not a
    checkpoint, `MaskkitError` for a device that is not there.
    """
    if (suffix := Path(source).suffix) in SUFFIXES:
        file = find_weights(source) if in_repository(source) else Path(source)
        return _load_exported(file, suffix, str(device) if device is not None else None, threads, throughput)
    import torch

    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.infer.runtimes import split
    from maskkit.infer.torch_runtime import find_device

    found, streams = find_device(device), 1  # before the file is read or downloaded
    if throughput and found.type == "cpu":
        streams, threads = split(threads or torch.get_num_threads())
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = load_model(find_weights(source))
    segmenter = Segmenter.of(
        checkpoint.model, checkpoint.config.input, checkpoint.categories, checkpoint.info, found, fold=True
    )
    return replace(segmenter, config=checkpoint.config, predictor=replace(segmenter.predictor, streams=streams))


def _load_exported(path: Path, suffix: str, device: str | None, threads: int | None, throughput: bool) -> Segmenter:
    from maskkit.checkpoints.exported import input_of
    from maskkit.checkpoints.header import categories_of, decoder_of
    from maskkit.infer.runtimes import FILES, FileRuntime, cores, split

    runtime: FileRuntime
    streams = 1
    if suffix in FILES:
        if throughput and suffix == ".onnx" and device in (None, "cpu"):  # OpenVINO gains nothing
            streams, threads = split(threads or cores())
        runtime = FILES[suffix](path, device, threads)
    else:
        from maskkit.infer.torch_runtime import PackageRuntime

        runtime = PackageRuntime(path, device, threads)
    found = runtime.description
    predictor = Predictor(runtime, decoder_of(found, path), input_of(found, path), categories_of(found), streams)
    return Segmenter(predictor, runtime.exported.task, found["info"])


@dataclass(frozen=True, repr=False)
class Segmenter:
    """Predicts from images: preprocessing, a runtime, a decoder and class names."""

    predictor: Predictor
    task_name: str
    """A key of `maskkit.eval.task.TASKS`."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What is known about the weights: ``step``, ``metrics``, ``score``, ``licence``."""
    config: RunConfig | None = None
    """How a PyTorch model was trained; None for an exported file."""

    @classmethod
    def of(
        cls,
        model: Model,
        input: InputConfig,
        categories: Categories,
        info: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        fold: bool = False,
    ) -> Segmenter:
        """The segmenter of a PyTorch model, which is neither moved nor changed.

        ``device`` None uses an accelerator where there is one; ``fold`` folds the batch norm, for speed.
        """
        from maskkit.infer import torch_runtime

        found = torch_runtime.find_device(device)
        return cls(torch_runtime.predictor(model, input, categories, found, fold), model.task, dict(info or {}))

    def __repr__(self) -> str:
        names, (height, width) = self.categories.names, self.input.size
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
        name = self.info.get("preset") or type(getattr(self.runtime, "model", self.runtime)).__name__
        return f"Segmenter({name}, {self.task_name}, {classes}: {shown}; input {width} x {height}, {self.input.resize})"

    @property
    def input(self) -> InputConfig:
        """How images become the network's input."""
        return self.predictor.input

    @property
    def runtime(self) -> Runtime:
        """What runs the network."""
        return self.predictor.runtime

    @property
    def decoder(self) -> Decoder:
        """What turns the network's outputs into predictions."""
        return self.predictor.decoder

    @property
    def categories(self) -> Categories:
        """The classes of the model."""
        return self.predictor.categories

    @property
    def task(self) -> Task:
        """How predictions are evaluated and written."""
        from maskkit.eval.task import TASKS

        return TASKS[self.task_name]

    @property
    def score(self) -> float:
        """The score threshold of predictions, unless another is given: that of the highest F1 on the validation images.

        Trainings choose it and checkpoints carry it; for weights from elsewhere it is `DEFAULT_SCORE`.
        """
        chosen = self.info.get("score")
        return float(chosen) if isinstance(chosen, int | float) and 0 <= chosen <= 1 else DEFAULT_SCORE

    def predict(
        self, source: Source, score: float | None = None, *, tile: int | None = None, overlap: float = OVERLAP
    ) -> Prediction:
        """The prediction for one image: a file, its content (bytes or an open binary file), a PIL image, or a uint8 RGB
        array ``(H, W, 3)`` or tensor ``(3, H, W)``. Several images are for `predict_many`.

        Objects below ``score`` are left out; None means `score` of the segmenter. ``tile`` cuts a large image into
        tiles of this size in pixels, see `with_tiles`. Raises `DataError` when the image cannot be read, and for a
        list, a folder or an address.
        """
        segmenter = self if tile is None else self.with_tiles(tile, overlap)
        return next(segmenter.predict_many([source], score))

    def predict_many(
        self,
        sources: Iterable[Source],
        score: float | None = None,
        batch: int = 1,
        failed: Callable[[Failure], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for ``sources``, in order; image ids are positions in ``sources``, counted from 1.

        An image that cannot be read raises `DataError`, or is passed to ``failed`` where that is given; one image in
        place of several raises it at once.
        """
        if isinstance(sources, str | bytes | Path):
            raise DataError("predict_many takes a list of images; put the image into a list, or use predict")
        least = self.score if score is None else score
        return self.predictor.images(sources, batch=batch, score=least, failed=failed)

    def predict_video(
        self,
        source: str | Path | int,
        score: float | None = None,
        *,
        track: bool = False,
        every: int = 1,
        start: float = 0.0,
        stop: float | None = None,
        batch: int = 1,
        failed: Callable[[Failure], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for the frames of a video file, of a folder of frames, or of a camera (its number), one by one.

        The image id is the number of the frame, from 0; ``prediction.image`` has its pixels. With ``track`` objects
        have ``instances.track_ids``. One frame of ``every`` is predicted, from ``start`` to ``stop`` seconds. A frame
        that cannot be read raises `DataError`, or is passed to ``failed`` where that is given. Raises `DataError`
        for what is no video, `MaskkitError` where the extra ``maskkit[video]`` is not installed.
        """
        from maskkit.infer.predict import raise_failure
        from maskkit.infer.video import Clip, follow, open_video

        clip, video = Clip(every, start, stop), open_video(source)
        least = self.score if score is None else score
        pairs = follow(self.predictor, video, clip, failed or raise_failure, score=least, track=track, batch=batch)
        return (prediction for _, prediction in pairs)

    def with_tiles(self, tile: int, overlap: float = OVERLAP) -> Segmenter:
        """The same model for large images: each is predicted in tiles of ``tile`` rows and columns, and the results are
        merged.

        ``overlap`` is the share of a tile that its neighbours see too; it should be as large as most objects. Raises
        `MaskkitError` for an overlap of half a tile or more.
        """
        from maskkit.infer.tiles import with_tiles

        return replace(self, predictor=with_tiles(self.predictor, tile, overlap))

    def with_tta(self, tta: Tta) -> Segmenter:
        """The same model with test-time augmentation (semantic models only).

        Raises `MaskkitError` for any other model, and for an exported file.
        """
        if tta.plain:
            return self
        from maskkit.infer.runtimes import FileRuntime

        if isinstance(self.runtime, FileRuntime):
            raise MaskkitError(
                f"{self.runtime.path}: test-time augmentation takes the checkpoint, not an exported file"
            )
        from maskkit.infer.torch_runtime import with_tta

        return replace(self, predictor=with_tta(self.predictor, tta))

    def evaluate(self, data: str | Path | Dataset, batch: int = 1, workers: int = 0) -> Result:
        """The metrics on a data set (of a folder, on its validation split if it has one), over the shared classes.

        Classes are matched by name. Raises `DataError` if model and data share none.
        """
        if isinstance(data, str | Path):
            data = self.task.open(data, "val")
        rows, known = self.detect(data, batch, workers)
        return self.task.evaluate(rows, known)

    def detect(
        self, dataset: Dataset, batch: int = 1, workers: int = 0, progress: Callable[[int], None] | None = None
    ) -> tuple[list[Row], Dataset]:
        """COCO result rows for ``dataset``, and the data set as the model's task evaluates it, with the shared classes.

        The rows have the category ids of the data. ``progress`` is called with 1 after each image. Raises `DataError`
        when model and data share no class name.
        """
        from maskkit.eval.rows import rows_of, shared_classes, translated

        ids, known = shared_classes(self.categories, self.task.view(dataset))
        each = (lambda i, prediction: progress(1)) if progress is not None else None
        rows = rows_of(self.predictor.dataset(known, batch=batch, workers=workers), each)
        return translated(rows, ids), known

    def export(self, path: str | Path, config: ExportConfig | None = None, **options: Any) -> Exported:
        """Write the model as ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2``; see `maskkit.export.write.export`.

        Raises `MaskkitError` for a model that is an exported file already.
        """
        from maskkit.checkpoints.checkpoint import Checkpoint
        from maskkit.export.write import ExportConfig, export
        from maskkit.infer.torch_runtime import TorchRuntime

        if self.config is None or not isinstance(self.runtime, TorchRuntime):
            raise MaskkitError("only a model that was loaded from a checkpoint can be exported")
        checkpoint = Checkpoint(self.runtime.model, self.config, self.categories, dict(self.info))
        return export(checkpoint, Path(path), config or ExportConfig(), **options)

    def push(
        self,
        address: str,
        *,
        licence: str | None = None,
        data: str = "",
        sample: Source | None = None,
        private: bool = True,
    ) -> str:
        """Publish the model as the repository ``hf://user/name`` of the Hugging Face Hub; returns its page.

        `load` takes the same address. The repository gets the weights, a model card (``licence``, by default that of
        the weights it was made from; ``data``, a text about what it was trained on; metrics, preprocessing) and an
        overlay of ``sample``, by default an image of the package. huggingface_hub has to be logged in. Raises
        `MaskkitError` where there is no licence, for an exported file, and for what the Hub refuses.
        """
        import tempfile

        from maskkit.checkpoints.checkpoint import Checkpoint
        from maskkit.checkpoints.push import push_checkpoint
        from maskkit.infer.torch_runtime import TorchRuntime

        if self.config is None or not isinstance(self.runtime, TorchRuntime):
            raise MaskkitError("only a model that was loaded from a checkpoint can be pushed")
        licence = licence or self.info.get("licence")
        if not licence:
            raise MaskkitError(f"{address}: say under which licence: push({address!r}, licence='apache-2.0')")
        image = DEMO_IMAGES / "coffee.jpg" if sample is None else sample
        checkpoint = Checkpoint(self.runtime.model, self.config, self.categories, dict(self.info))
        with tempfile.TemporaryDirectory() as folder:
            overlay = self.predict(image).save(Path(folder) / "sample.jpg")
            return push_checkpoint(checkpoint, address, licence, data, overlay, private)

    @classmethod
    def train(
        cls,
        preset: str,
        data: str | Path,
        /,
        out: str | Path,
        *,
        resume: bool = False,
        weights: str | Path | None = None,
        device: torch.device | str | None = None,
        **sections: Mapping[str, Any],
    ) -> Segmenter:
        """Train a preset on your images and return a segmenter with the best weights; the run is written to ``out``.

        ``weights`` are the initial ones: a checkpoint or a file with timm's names, ``"built-in"``, ``"hub"``,
        ``"random"``, or None for the best that there are (`maskkit.engine.initial.start_weights`). ``device`` None uses
        an accelerator where there is one. ``sections`` change fields of the configuration: ``train={"epochs": 50}``,
        ``data={"labels": "boxes"}``.
        """
        from maskkit.engine.train import train

        start = initial_weights(weights, preset)
        where = None if device is None else str(device)
        result = train(configure(preset, data, **sections), Path(out), resume, start, where)
        return load(result.best, device)


def configure(preset: str, data: str | Path = "", /, **sections: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run of ``preset`` on ``data``, with fields of its ``sections`` changed.

    Raises `MaskkitError` for an unknown preset, ``TypeError`` for an unknown section or field.
    """
    chosen = zoo.preset(preset)
    config = RunConfig(preset, chosen.model, chosen.input, chosen.augment, chosen.train, DataConfig(str(data)))
    return change(config, **sections)
