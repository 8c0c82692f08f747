"""Training a model of image tags on tags and saliency; `maskkit.infer.pseudo_labels` makes masks by it."""

from dataclasses import replace
from pathlib import Path

from maskkit import zoo
from maskkit.checkpoints.checkpoint import load_model
from maskkit.checkpoints.find import AUTO
from maskkit.config import DataConfig, RunConfig
from maskkit.data import open_splits
from maskkit.engine.train import train
from maskkit.infer.saliency import write_saliency


def train_on_tags(
    preset: str,
    data: Path,
    saliency: Path,
    out: Path,
    weights: str | Path = AUTO,
    steps: int | None = None,
    device: str | None = None,
) -> Path:
    """Train ``preset`` on the tags of the images at ``data``, in ``out/run``; returns the file of its best weights.

    ``saliency`` is a folder of maps, or a checkpoint whose predictions become maps in ``out/saliency``. An interrupted
    run is resumed. Raises `MaskkitError` for what the user can correct.
    """
    if saliency.is_file():
        finder = load_model(saliency)
        images = [r.path for r in open_splits(data)[0].records]
        saliency = out / "saliency"
        write_saliency(finder.model, finder.config.input, finder.categories, images, saliency)
    chosen = zoo.preset(preset)
    given = DataConfig(str(data), labels="tags", saliency=str(saliency))
    settings = replace(chosen.train, steps=steps or chosen.train.steps)
    config = RunConfig(preset, chosen.model, chosen.input, chosen.augment, settings, given)
    return train(config, out / "run", resume=True, weights=weights, device=device).best
