"""What users import: `create_model`, `load`, `Segmenter`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskkit import zoo
from maskkit.config import DataConfig, InputConfig, RunConfig, Tta, change
from maskkit.data import find_splits, open_dataset
from maskkit.data.dataset import Dataset
from maskkit.errors import DataError, MaskkitError
from maskkit.infer.predict import Failure, Source, predict_dataset, predict_images
from maskkit.models.base import Model
from maskkit.prediction import Categories, Prediction

if TYPE_CHECKING:
    from maskkit.eval.task import Result, Task

BUILT_IN = "built-in"
"""What `load` calls the weights that the package carries."""

_BUILT_IN_WEIGHTS = Path(__file__).parent / "weights" / "builtin.safetensors"


def create_model(preset: str, num_classes: int | None = None, **overrides: Any) -> Model:
    """A model with random weights; never touches the network.

    ``overrides`` change fields of the method's own config; a mapping changes those of a part:
    ``backbone={"name": "resnet18"}``.
    nearest ones, and ``TypeError`` for an unknown field.
    """
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return zoo.model_class(preset)(change(zoo.preset(preset).model, **overrides))


def load(source: str | Path = BUILT_IN, device: torch.device | str | None = None) -> Segmenter:
    """The `Segmenter` of a self-describing checkpoint, of the ``"built-in"`` model, or of a preset with public weights.

    ``device`` None takes an accelerator where there is one. For speed the batch norm of the backbone is folded into
    its convolutions: what comes back predicts, it does not train on. Raises `DataError` for a file that is missing or
    no checkpoint.
    """
    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.nn.backbones.backbone import fold_batch_norm

    checkpoint = load_model(find_weights(source))
    given = checkpoint.config.input
    size = (256, 256) if given.resize == "shorter" else given.size  # where any size will do, a small one
    fold_batch_norm(checkpoint.model, torch.zeros(1, 3, *size))
    return Segmenter(checkpoint.model, checkpoint.config.input, checkpoint.categories, checkpoint.info, device)


def find_weights(source: str | Path, preset: str | None = None) -> Path:
    """The file of weights called ``source``: a path, ``"built-in"``, or a preset that somebody publishes weights of.

    ``"hub"`` is what is published of ``preset``. Raises `DataError` when there is none, or it cannot be fetched.
    """
    from maskkit.checkpoints import hub

    if source == hub.HUB and preset is not None:
        return hub.fetch(preset)
    path = _BUILT_IN_WEIGHTS if source == BUILT_IN else Path(source)
    if not path.is_file():
        is_preset = str(source) in zoo.list_models()
        if is_preset and hub.can_fetch(str(source)):
            return hub.fetch(str(source))
        hint = "that is a preset, train it first" if is_preset else f"give a .safetensors file or {BUILT_IN!r}"
        raise DataError(f"{path}: there is no such file of weights; {hint}")
    return path


class Segmenter:
    """A model with all it needs to take images as they come: preprocessing, class names, a device."""

    def __init__(
        self,
        model: Model,
        input: InputConfig,
        categories: Categories,
        info: Mapping[str, Any] | None = None,
        device: torch.device | str | None = None,
        tta: Tta | None = None,
    ) -> None:
        self.device = torch.device(device) if device is not None else _best_device()
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.input = input
        self.categories = categories
        self.info = dict(info or {})
        self.tta = tta

    def predict(self, source: Source, score: float = 0.3) -> Prediction:
        """What is in one image: a file, an RGB array ``(H, W, 3)`` or tensor ``(3, H, W)`` of uint8, a PIL image.

        Objects below ``score`` are left out. Raises `DataError` when the image cannot be read.
        """
        return next(self.predict_many([source], score))

    def predict_many(
        self,
        sources: Iterable[Source],
        score: float = 0.3,
        batch: int = 1,
        failed: Callable[[Failure], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one after the other; image ids are positions in ``sources``, counted from 1.

        An image that cannot be read raises `DataError`; with ``failed`` it is handed there and the others go on.
        """
        return predict_images(self.model, sources, self.input, self.categories, batch=batch, score=score, failed=failed)

    def with_tta(self, tta: Tta) -> Segmenter:
        """The same model with test-time augmentation (semantic models alone).

        Raises `MaskkitError` for a model of another task.
        """
        if tta.plain:
            return self
        if self.model.task != "semantic":
            raise MaskkitError("test-time augmentation is for semantic models; this one finds objects")
        return Segmenter(self.model, self.input, self.categories, self.info, self.device, tta)

    @property
    def task(self) -> Task:
        """How the model's predictions are measured."""
        from maskkit.eval.task import TASKS

        return TASKS[self.model.task]

    def evaluate(self, data: str | Path | Dataset, batch: int = 1, workers: int = 0) -> Result:
        """The task's numbers on a data set (a folder's validation split where it has one), over the classes both know.

        Classes are matched by name. Raises `DataError` when no name is shared.
        """
        if not isinstance(data, Dataset):
            data = open_dataset(data, "val" if "val" in find_splits(data) else None)
        rows, known = self.detect(data, batch, workers)
        return self.task.evaluate(rows, known)

    def detect(
        self, dataset: Dataset, batch: int = 1, workers: int = 0, progress: Callable[[int], None] | None = None
    ) -> tuple[list[dict[str, Any]], Dataset]:
        """COCO result rows for ``dataset``, and the data set as the model's task sees it, with the shared classes only.

        The rows have the category ids of the data. Raises `DataError` when no class name is shared.
        """
        ids, known = shared_classes(self.categories, self.task.view(dataset))
        rows: list[dict[str, Any]] = []
        for prediction in predict_dataset(
            self.model, known, self.input, self.categories, batch, workers, progress=progress, tta=self.tta
        ):
            found = prediction.to_coco()
            rows += [{**row, "category_id": ids[row["category_id"]]} for row in found if row["category_id"] in ids]
        return rows, known

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
        **sections: Mapping[str, Any],
    ) -> Segmenter:
        """Train a preset on your images and come back with the best weights; the run is written to ``out``.

        ``sections`` change fields of the configuration: ``train={"epochs": 50}``, ``data={"labels": "boxes"}``.
        """
        from maskkit.engine.train import train

        start = find_weights(weights, preset) if weights is not None else None
        result = train(configure(preset, data, **sections), Path(out), resume, start)
        return load(result.best)


def configure(preset: str, data: str | Path = "", /, **sections: Mapping[str, Any]) -> RunConfig:
    """A preset as the configuration of a run on ``data``, with fields of its ``sections`` changed.

    Raises `MaskkitError` for an unknown preset, ``TypeError`` for an unknown section or field.
    """
    chosen = zoo.preset(preset)
    config = RunConfig(preset, chosen.model, chosen.input, chosen.augment, chosen.train, DataConfig(str(data)))
    return change(config, **sections)


def shared_classes(known: Categories, dataset: Dataset) -> tuple[dict[int, int], Dataset]:
    """Ids of ``known`` to ids of the data for classes of the same name, and the data set with these classes only.

    Names are compared without case and surrounding space. Raises `DataError` when none is shared.
    """
    ours = {name.strip().lower(): i for name, i in zip(known.names, known.ids, strict=True)}
    theirs = dataset.categories
    kept = [k for k, name in enumerate(theirs.names) if name.strip().lower() in ours]
    if not kept:
        raise DataError(
            f"{dataset.source}: shares no class with the model, which knows {_some(known.names)}, while the data has "
            f"{_some(theirs.names)}; rename the classes of the data, or train on it"
        )
    ids = {ours[theirs.names[k].strip().lower()]: theirs.ids[k] for k in kept}
    return ids, dataset.only(kept)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _best_device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
