"""Deterministic inputs and weights for the golden files.

A golden stores outputs only.  Weights, images and feature maps are made again
from this recipe, so that a re-implementation and the official code can be fed
the same numbers without anybody storing them.

Only numpy is needed; torch is imported when tensors are asked for.

Weights (``fill_state_dict``): each tensor has its own generator, seeded with
its *name*, so the order and the number of the other tensors do not matter::

    rng = Generator(PCG64(zlib.crc32(name.encode()) ^ seed))

and its values follow from name, shape and dtype alone:

====================================  =======================================
integer or bool dtype                 zeros
name ends in ``running_var``          uniform(0.5, 1.5)
name ends in ``running_mean``/bias    0.1 * normal
other tensor with < 2 dimensions      1 + 0.1 * normal      (norm scales)
other tensor with >= 2 dimensions     gain * sqrt(2 / fan_in) * normal,
                                      fan_in = prod(shape[1:])
====================================  =======================================

"bias" means the last dotted part of the name is ``bias`` or ends in ``_bias``.
All draws are float64 and then cast to the tensor's dtype.  ``gain`` is 1 but
for names matched by the manifest's optional ``gains`` list (below).
"""

import re
import zlib

import numpy as np

__all__ = [
    "fill_state_dict",
    "fill_tensor",
    "rng_for",
    "seeded_array",
    "seeded_image",
]


def rng_for(name, seed):
    """The generator that belongs to ``name`` under ``seed``."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) ^ int(seed)))


def fill_tensor(name, shape, dtype="float32", seed=0, gain=1.0):
    """One tensor of a state dict, as a numpy array of ``shape``."""
    shape = tuple(int(n) for n in shape)
    dtype = np.dtype(str(dtype).replace("torch.", ""))
    if dtype.kind in "iub":
        return np.zeros(shape, dtype)
    rng = rng_for(name, seed)
    leaf = name.rsplit(".", 1)[-1]
    if leaf.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, size=shape)
    elif leaf.endswith("running_mean") or leaf == "bias" or leaf.endswith("_bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) < 2:
        value = 1.0 + 0.1 * rng.standard_normal(shape)
    else:
        fan_in = int(np.prod(shape[1:]))
        value = rng.standard_normal(shape) * (np.sqrt(2.0 / fan_in) * gain)
    return np.asarray(value).astype(dtype)


def fill_state_dict(manifest, seed=None, as_torch=False):
    """Weights for every parameter listed in a manifest.

    ``manifest``: a loaded manifest.json (its ``parameters`` entry is used), or
    directly a list of ``[name, shape, dtype]``.  ``seed``: by default the
    manifest's own.  A manifest may hold ``gains``, a list of
    ``[regular expression, gain]``; the first expression that ``re.search``
    finds in a name gives that tensor's gain (only tensors with two or more
    dimensions have one).  Returns a dict name -> numpy array, or torch tensor
    with ``as_torch``.
    """
    gains = []
    if isinstance(manifest, dict):
        parameters = manifest["parameters"]
        gains = manifest.get("gains") or []
        if seed is None:
            seed = manifest["seed"]
    else:
        parameters = manifest
    if seed is None:
        raise ValueError("a seed is needed")
    state = {}
    for name, shape, dtype in parameters:
        gain = next((g for pattern, g in gains if re.search(pattern, name)), 1.0)
        state[name] = fill_tensor(name, shape, dtype, seed, gain)
    if as_torch:
        import torch

        state = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    return state


def seeded_image(h, w, seed):
    """A uint8 RGB picture (h, w, 3): smooth colours, rectangles, some noise."""
    rng = rng_for("image", seed)
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    image = np.empty((h, w, 3))
    for c in range(3):
        fy, fx, phase = rng.uniform(0.5, 3.0), rng.uniform(0.5, 3.0), rng.uniform(0, 2 * np.pi)
        image[..., c] = 127 + 60 * np.sin(2 * np.pi * (fy * y / h + fx * x / w) + phase)
    for _ in range(8):
        y0, x0 = int(rng.integers(0, h)), int(rng.integers(0, w))
        y1 = min(h, y0 + 1 + int(rng.integers(0, max(1, h // 2))))
        x1 = min(w, x0 + 1 + int(rng.integers(0, max(1, w // 2))))
        image[y0:y1, x0:x1] = rng.uniform(0, 255, size=3)
    image += 8.0 * rng.standard_normal(image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def seeded_array(name, shape, seed):
    """Standard normal float32 array, for feature maps and raw predictions."""
    return rng_for(name, seed).standard_normal(tuple(int(n) for n in shape)).astype(np.float32)
