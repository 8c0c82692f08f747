"""`maskkit pretrain`: pre-train a backbone on images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.config import Pretraining
from maskkit.terminal import say


def pretrain(
    images: Annotated[Positional[Path], arg(metavar="FOLDER")],
    out: Path = Path("runs/pretrain"),
    resume: bool = False,
    device: str = "auto",
    config: Annotated[Pretraining, arg(name="")] = Pretraining(),  # noqa: B008 (frozen)
) -> int:
    """Pre-train a backbone on images without labels (EVA): it predicts CLIP's features of masked patches.

    Example: maskkit pretrain photos/ --student eva_tiny_patch16_224 --epochs 50 --out runs/pretrain

    Example: maskkit train --model eva-tiny-256 --data pets/ --model.backbone.weights runs/pretrain/backbone.safetensors

    Args:
        images: Folder of images, searched recursively.
        out: Folder of the run.
        resume: Continue the run in the folder, or start it where there is none.
        device: auto for an accelerator where there is one, cpu, cuda, cuda:1 or mps.
        config: Student, teacher and recipe.
    """
    from maskkit.engine.pretrain import pretrain

    backbone = pretrain(images, config, out, resume, device)
    say(f"{backbone}: weights of {config.student}, for --model.backbone.weights")
    return 0
