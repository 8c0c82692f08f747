"""`forward` and `select` of a model as one graph of `torch.export`."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from maskkit.errors import MaskkitError
from maskkit.infer.torch_runtime import evaluating
from maskkit.models.base import Model

DYNAMIC = ("batch", "size")
"""What can be dynamic in a graph: the number of images, and their height and width."""

MULTIPLE = 32
"""A dynamic height or width is a multiple of this."""


class Whole(nn.Module):
    """`forward` and `select` in one module; each tensor is returned once, under the first of its names."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.same: dict[str, str] = {}
        """Fields that are the same tensor as an earlier field: ``{"mask_scores": "scores"}``."""

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> dict[str, Tensor]:
        """The fields of the decoder's outputs, without those in ``same``."""
        given: dict[str, Tensor] = {}
        for name, tensor in self.model.select(self.model(images, sizes))._asdict().items():
            first = next((n for n, t in given.items() if t is tensor), None)
            if first is None:
                given[name] = tensor
            else:
                self.same[name] = first
        return given


@dataclass(frozen=True)
class Graph:
    """An exported model."""

    program: ExportedProgram
    inputs: tuple[str, ...]
    """``images``, and ``sizes`` if the method uses the size of each image inside its padding."""
    outputs: tuple[str, ...]
    """Fields of the decoder's outputs, without those in ``same``."""
    same: dict[str, str]
    """Fields of the decoder's outputs that equal another field."""
    dynamic: tuple[str, ...]
    """Which of `DYNAMIC` are dynamic."""


def trace(model: Model, images: Float[Tensor, "b 3 h w"], dynamic: Collection[str] = (), sized: bool = False) -> Graph:
    """The graph of ``model`` for inputs like ``images``.

    ``dynamic`` names entries of `DYNAMIC`. With ``sized``, images may be padded: methods that use the size inside the
    padding get a second input. Raises `MaskkitError` if the method does not allow this.
    """
    whole = Whole(model)
    sizes = torch.tensor([images.shape[2:]] * images.shape[0])
    example: tuple[Tensor, ...] = (images, sizes) if sized else (images,)
    open_: dict[int, Any] = {}
    if "batch" in dynamic:
        open_[0] = Dim("batch", min=1)
    if "size" in dynamic:
        open_ |= {axis: MULTIPLE * Dim(name, min=2) for axis, name in ((2, "rows"), (3, "columns"))}
    shapes: dict[str, Any] = {"images": open_}
    if sized:
        shapes["sizes"] = {0: open_[0]} if 0 in open_ else {}
    with evaluating(model), torch.no_grad():
        fields = whole(*example)
        try:
            program = torch.export.export(whole, example, dynamic_shapes=shapes if dynamic else None, strict=False)
        except Exception as error:  # torch raises a dozen kinds, among them bare RuntimeError and AssertionError
            if not dynamic:
                raise
            left = " and ".join(dynamic)
            raise MaskkitError(
                f"{type(model).__name__} cannot be exported with a dynamic {left} ({_first_line(error)}); leave "
                "--dynamic out, or choose the batch and the size of the file: --batch, --size"
            ) from error
    if any(program.range_constraints[symbol].upper < 1e6 for symbol in _open(program)):
        raise MaskkitError(f"{type(model).__name__} cannot be exported with a dynamic size: it takes a few sizes only")
    if sized and not _is_read(program, "sizes"):
        return trace(model, images, dynamic)
    return Graph(program, ("images", "sizes") if sized else ("images",), tuple(fields), whole.same, tuple(dynamic))


def _is_read(program: ExportedProgram, name: str) -> bool:
    """Whether any node uses the input ``name``."""
    return any(node.users for node in program.graph.nodes if node.op == "placeholder" and node.name == name)


def _open(program: ExportedProgram) -> set[Any]:
    """The symbols for the dynamic sides of the inputs; the graph has others, such as a number of chosen regions."""
    (images,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    sides = [side for side in images.meta["val"].shape if isinstance(side, torch.SymInt)]
    return {symbol for side in sides for symbol in side.node.expr.free_symbols}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" if str(error) else type(error).__name__
