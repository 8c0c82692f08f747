"""The interface of everything that runs a network: normalised images in, the decoder's arrays out."""

from typing import Protocol

import numpy as np
from jaxtyping import Float, Int


class Runtime(Protocol):
    """A network with its weights on a device, e.g. `maskkit.infer.torch_runtime.TorchRuntime`."""

    def run(self, images: Float[np.ndarray, "b 3 h w"], sizes: Int[np.ndarray, "b 2"]) -> dict[str, np.ndarray]:
        """The fields of the decoder's outputs (`maskkit.decode.outputs`), float32, each with a leading batch axis.

        ``images`` are normalised, in any memory order; ``sizes`` are the (height, width) of each inside its padding.
        """
        ...
