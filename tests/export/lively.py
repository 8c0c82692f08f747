"""Random models that find objects: what an export is compared on where there are no trained weights."""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.models.base import Model

M = TypeVar("M", bound=Model)


def lively(model: M, images: Float[Tensor, "b 3 h w"], seed: int = 0) -> M:
    """The model, its layers scaled so that the outputs of each have unit spread on ``images``, with random biases."""
    generator = torch.Generator().manual_seed(seed)
    done: set[nn.Module] = set()

    def scale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        spread = output.std()
        if module in done or not spread > 0:
            return output
        done.add(module)
        shape = (-1, 1, 1) if isinstance(module, nn.Conv2d) else (-1,)
        if module.bias is not None:
            output = output - module.bias.view(shape)
        module.weight.div_(spread)
        output = output / spread
        if module.bias is not None:
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
            output = output + module.bias.view(shape)
        return output

    hooks = [m.register_forward_hook(scale) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model.eval()
        model.select(model(images))
    for hook in hooks:
        hook.remove()
    return model
