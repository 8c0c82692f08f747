"""`maskkit pretrain`: a backbone from images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.config import Pretraining


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
