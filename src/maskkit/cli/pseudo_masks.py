"""`maskkit pseudo-masks`: make label maps from image tags."""

from __future__ import annotations

from pathlib import Path

from maskkit.cli.console import progress, stdout, wrong_usage
from maskkit.config import PseudoMasks
from maskkit.errors import MaskkitError
from maskkit.ranges import Count
from maskkit.terminal import say


def pseudo_masks(
    data: Path,
    saliency: Path | None = None,
    model: str = "eps-mobilenetv2-320",
    out: Path = Path("runs/pseudo-masks"),
    weights: str | None = None,
    steps: Count | None = None,
    device: str | None = None,
    tta: PseudoMasks = PseudoMasks(),  # noqa: B008 (frozen)
) -> int:
    """Make pseudo masks from image tags and saliency maps (EPS), as a data set that any semantic model trains on.

    Tags come from the classes of boxes, masks or label maps, from tags.csv, or from folder names.

    Example: maskkit pseudo-masks --data pets/ --saliency pets-saliency/ --out pets-masks

    Example: maskkit pseudo-masks --data pets/ --model runs/eps-mobilenetv2-320/best.safetensors --out pets-masks

    Args:
        data: Folder or annotation file; the train split where there is one.
        saliency: Folder of grey images with the names of the images, or a checkpoint of any model that predicts them.
        model: Checkpoint of a model trained on tags, or a preset to train first, in OUT/run.
        out: Folder to write to.
        weights: Initial weights, as in maskkit train.
        steps: Optimizer steps of the training; by default those of the preset.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        tta: Scales of each image, and the score of the background.
    """
    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.checkpoints.find import initial_weights
    from maskkit.engine.pseudo import train_on_tags
    from maskkit.eval.semantic.metric import evaluate
    from maskkit.eval.task import TASKS
    from maskkit.infer.pseudo_labels import learns_from_tags, write_pseudo_masks
    from maskkit.infer.torch_runtime import find_device

    found_device = find_device(device)
    dataset = TASKS["semantic"].open(data, "train")
    checkpoint = Path(model)
    if not checkpoint.is_file():
        if saliency is None:
            wrong_usage("pseudo-masks takes --saliency to train a preset, or --model with a checkpoint")
        start = initial_weights(weights, model)
        checkpoint = train_on_tags(model, data, saliency, out, start, steps, device)
    found = load_model(checkpoint)
    if not learns_from_tags(found.model):
        raise MaskkitError(f"{checkpoint}: does not train on tags; give a checkpoint of EPS")
    dataset = dataset.as_semantic().with_categories(found.categories)
    found.model.to(found_device)
    with progress() as bars:
        bar = bars.add_task("making masks", total=len(dataset))
        rows = write_pseudo_masks(found.model, dataset, found.config.input, tta, out, lambda n: bars.advance(bar, n))
    say(f"{len(dataset)} images, {len(dataset.categories)} classes; train on them with: maskkit train --data {out}")
    if any(r.semantic is not None and r.semantic.known for r in dataset.records):
        result = evaluate(rows, dataset)
        result.save(out / "metrics.json")
        stdout().print(result.table())
    return 0
