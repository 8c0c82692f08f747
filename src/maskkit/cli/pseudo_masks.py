"""`maskkit pseudo-masks`: label maps from image tags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from maskkit.cli.console import progress, stdout, wrong_usage
from maskkit.config import PseudoMasks
from maskkit.errors import MaskkitError


def pseudo_masks(
    data: Path,
    labels: Literal["tags"] = "tags",
    saliency: Path | None = None,
    model: str = "eps-mobilenetv2-320",
    out: Path = Path("runs/pseudo-masks"),
    weights: str | None = None,
    steps: int | None = None,
    tta: PseudoMasks = PseudoMasks(),  # noqa: B008 (frozen)
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
        tta: Scales at which each image is segmented, and the score of the background.
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
            wrong_usage("pseudo-masks needs --saliency to train a preset, or --model with a checkpoint")
        start = find_weights(weights, model) if weights is not None else None
        checkpoint = train_on_tags(model, data, saliency, out, start, steps)
    found = load_model(checkpoint)
    if not learns_from_tags(found.model):
        raise MaskkitError(f"{checkpoint}: does not learn from tags; give a checkpoint of EPS")
    dataset = dataset.as_semantic().with_categories(found.categories)
    found.model.to(best_device())
    with progress() as bars:
        bar = bars.add_task("making masks", total=len(dataset))
        rows = write_pseudo_masks(found.model, dataset, found.config.input, tta, out, lambda n: bars.advance(bar, n))
    print(f"{len(dataset)} images, {len(dataset.categories)} classes; train on them: maskkit train --data {out}")
    if any(r.semantic is not None and r.semantic.known for r in dataset.records):
        result = evaluate(rows, dataset)
        result.save(out / "metrics.json")
        stdout().print(result.table())
    return 0
