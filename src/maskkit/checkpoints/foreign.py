"""Weight files from any source: safetensors, MXNet's parameters, and pickles, whose code is never run."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskkit.checkpoints.listing import first_bytes, is_safetensors, read_listing
from maskkit.checkpoints.mxnet import MAGIC, read_mxnet
from maskkit.checkpoints.pickles import load_pickle
from maskkit.checkpoints.wrappers import find_state, own_names
from maskkit.errors import DataError
from maskkit.files import replacing, scratch_folder


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a weight file; see `read_foreign`."""
    return read_foreign(path)[0]


def read_foreign(path: str | Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Named tensors of a weight file: safetensors, a pickle of tensors (PyTorch) or of arrays (the zoos of detectron2
    and Mask2Former), or parameters of MXNet; and the names of the classes, by their numbers, which files of
    mmdetection and mmsegmentation have, or None.

    Common wrappers (``state_dict``, ``model``; an EMA of the weights is preferred), the prefixes that they put before
    every name (``module.``, ``model.``, ``_orig_mod.``) and the counter ``n_averaged`` are removed. Raises `DataError`,
    also for a pickle that would run code, and for a file of another framework.
    """
    path = Path(path)
    if is_safetensors(path):
        return own_names(read_tensors(path), path), None
    if first_bytes(path, len(MAGIC)) == MAGIC:
        return read_mxnet(path), None
    content = load_pickle(path)
    return find_state(content, path), _class_names(content)


def _class_names(content: object) -> tuple[str, ...] | None:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    places = [meta, meta.get("dataset_meta")] if isinstance(meta, Mapping) else []
    for place in places:
        for key in ("CLASSES", "classes"):
            names = place.get(key) if isinstance(place, Mapping) else None
            if isinstance(names, tuple | list) and names and all(isinstance(name, str) and name for name in names):
                return tuple(names)
    return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises `DataError` for a damaged file."""
    read_listing(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); copy or download it again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with tensors and string metadata, atomically. Raises `FileError` where it cannot."""
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}  # safetensors takes no shared memory
    with replacing(path) as temporary, scratch_folder(path) as folder:
        whole = folder / "tensors"  # in a folder of ours, because safetensors leaves a temporary file when it is killed
        try:
            save_file(own, whole, metadata)
        except SafetensorError as error:  # it hides the number of the system's error in its text
            raise _system_error(error) from None
        os.replace(whole, temporary)


def _system_error(error: SafetensorError) -> OSError:
    text = str(error)
    number = re.search(r"os error (\d+)", text)
    code = int(number.group(1)) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else text)
