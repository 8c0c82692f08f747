"""Features from inside a stage of MobileNetV3: what enters a stride, the output of the first block that has it.

torchvision's models read them beside the last features: Faster R-CNN at stride 32, DeepLab's auxiliary head at 8.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from maskkit.errors import MaskkitError

Place = tuple[int, int]
"""Index of a stage, and of a block in it."""


def places(body: Any, name: str, strides: Sequence[int]) -> tuple[dict[int, Place], dict[int, int]]:
    """For each of ``strides`` the block that its feature is the output of, and its channels; ``-s`` enters stride s.

    ``body`` is timm's network ``name`` before dilation. Raises `MaskkitError` for another one than MobileNetV3.
    """
    if not all(hasattr(body, part) for part in ("conv_stem", "bn1", "act1", "blocks")):
        raise MaskkitError(f"only MobileNetV3 has features inside of its stages, at {strides}, not {name}")
    stride, first, last = 2, {}, {}
    for i, stage in enumerate(body.blocks):
        for j, block in enumerate(stage):
            convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
            place = ((i, j), convs[-1].out_channels)
            if any(conv.stride != (1, 1) for conv in convs):
                stride *= 2
                first[-stride] = place
            last[stride] = place
    found = {**first, **last}
    return {s: found[s][0] for s in strides}, {s: found[s][1] for s in strides}


def features(body: Any, images: Float[Tensor, "b 3 h w"], wanted: dict[int, Place]) -> dict[int, Tensor]:
    """The features of ``body`` at the places that are ``wanted``."""
    found: dict[Place, Tensor] = {}
    x = body.act1(body.bn1(body.conv_stem(images)))
    for i, stage in enumerate(body.blocks):
        for j, block in enumerate(stage):
            x = found[i, j] = block(x)
    return {stride: found[place] for stride, place in wanted.items()}
