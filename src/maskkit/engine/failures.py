"""Errors of a training that are not bugs, as one line with a remedy."""

import torch

from maskkit.errors import FileError, MaskkitError, explain


def failure(error: BaseException, flags: str, hint: str) -> MaskkitError | None:
    """The error to raise instead of a known one of torch or of the system; None for any other.

    ``flags`` is the prefix of the settings on the command line, ``hint`` says how to continue.
    """
    text, further = str(error), f"; {hint}" if hint else ""
    if isinstance(error, OSError):
        return FileError(explain(error) + further)
    if isinstance(error, MaskkitError):
        return None
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    if memory:
        parts = f", or compute it in parts: {flags}accumulate 2" if flags == "--train." else ""
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
        return MaskkitError(
            f"the {where} has not enough memory for a step; lower {flags}batch or the size of the input{parts}{further}"
        )
    if isinstance(error, ValueError) and "Expected more than 1 value per channel when training" in text:
        return MaskkitError(
            "batch norm saw a single value per channel, from which it cannot learn; "
            f"raise {flags}batch (each process needs 2 images at least), or freeze it: --model.backbone.norm frozen"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return MaskkitError(
            f"a loader process ended by itself, mostly because memory ran out; lower {flags}workers or "
            f"{flags}batch{further}"
        )
    return None
