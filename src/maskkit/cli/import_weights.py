"""`maskkit import`: convert a published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.errors import DataError
from maskkit.terminal import say


def import_(checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")], model: str, out: Path) -> int:
    """Convert a checkpoint of a method's official code to a maskkit checkpoint.

    Only the tensors of a pickle are read; a pickle that would run code is refused.

    Example: maskkit import yolact_resnet50_54_800000.pth --model yolact-resnet50 --out yolact-resnet50.safetensors

    Args:
        checkpoint: File of the official code, .pth or .safetensors.
        model: Preset that the checkpoint was trained as.
        out: File to write.
    """
    from maskkit import zoo
    from maskkit.checkpoints.foreign import read_checkpoint
    from maskkit.checkpoints.hub import import_state

    zoo.preset(model)  # an unknown preset is reported before the file is read
    try:
        categories = import_state(read_checkpoint(checkpoint), model, out, checkpoint.name)
    except DataError as error:
        message = str(error)
        raise DataError(message if str(checkpoint) in message else f"{checkpoint}: {message}") from None
    say(f"{out}: {model} with {len(categories)} classes; try it: maskkit predict IMAGE --model {out}")
    return 0
