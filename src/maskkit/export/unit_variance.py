"""Layer-sequential unit variance (Mishkin and Matas, All you need is a good init, ICLR 2016).

Random models whose activations neither vanish nor explode find objects in any image. Exports are compared and timed
with them if there are no trained weights.
"""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.models.base import Model

M = TypeVar("M", bound=Model)


def unit_variance(model: M, images: Float[Tensor, "b 3 h w"], seed: int = 0) -> M:
    """The model, its convolutions and linear layers scaled in place so that the outputs of each have a standard
    deviation of 1 on ``images``; biases become normal with one of 0.3.

    Layers are scaled in the order in which `forward` and `select` run them.
    """
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
