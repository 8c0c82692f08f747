"""The interface of everything that runs a network: normalised images in, the arrays of the model's decoder out."""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Int


class Runtime(Protocol):
    """A network with its weights, on some device. `maskkit.infer.torch_runtime` has the one of PyTorch."""

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """The fields of the decoder's outputs (`maskkit.decode.outputs`) with the axis of images in front, float32.

        ``images`` are normalised, whatever their order in memory; ``sizes`` are the (height, width) of each inside its
        padding.
        """
        ...
