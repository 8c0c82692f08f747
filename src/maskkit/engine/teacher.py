"""Teachers of masked image modelling: frozen timm networks that give a feature for each patch of an image."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskkit.checkpoints.foreign import read_checkpoint
from maskkit.engine.initial import load_backbone
from maskkit.errors import DataError, MaskkitError
from maskkit.nn.backbones.backbone import Backbone
from maskkit.nn.backbones.names import check_name


class Teacher(nn.Module):
    """Features (B, N, D) of the patches of a ``grid``, for the student's images with ``patch`` pixels per patch.

    ``source`` is ``timm:NAME``, with ``weights`` from a file or the ``hub``, or ``random:NAME``. A transformer gets the
    image resized to the same grid of its own patches; its features are the tokens after its last norm, and for CLIP
    after its projection. Other networks give their features at the stride of a patch. Raises `MaskkitError` for an
    unknown source, `DataError` for weights that do not fit.
    """

    mean: Tensor
    std: Tensor
    net: Any
    features: int
    """D, the width of a feature."""

    def __init__(self, source: str, weights: str, grid: tuple[int, int], patch: int) -> None:
        super().__init__()
        kind, _, name = source.partition(":")
        if kind not in ("timm", "random") or not name:
            raise MaskkitError(f"teacher {source!r} is neither timm:NAME nor random:NAME")
        if kind == "random" and weights != "hub":
            raise MaskkitError(
                f"teacher {source!r} has random weights, and --teacher-weights {weights}: choose one of the two"
            )
        self.grid, self.patch, self.projects = grid, patch, False
        check_name(name, "teacher")
        try:
            with torch.device("meta"):
                outline: Any = timm.create_model(name)
        except (RuntimeError, ValueError) as error:  # timm raises them for an unknown tag
            raise MaskkitError(f"timm has no teacher {name!r} ({error}); timm.list_models() lists them") from None
        self.has_tokens = hasattr(outline, "num_prefix_tokens")  # what timm's transformers have, and nothing else
        if self.has_tokens:
            tag = str(outline.pretrained_cfg.get("tag"))
            self.projects = "_clip_" in name and "_ft_" not in tag
            self.features = outline.num_classes if self.projects else outline.num_features
            self.net = _transformer(name, None if kind == "random" else weights, grid)
        else:
            self.net = Backbone(name, (patch,))
            self.features = self.net.channels[patch]
            if kind == "timm":
                load_backbone(self.net, weights)
        cfg = outline.pretrained_cfg
        for statistic in ("mean", "std"):
            self.register_buffer(statistic, torch.tensor(cfg[statistic])[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode: a teacher does not learn."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Features of whole images, RGB from 0 to 1."""
        images = (pixels - self.mean) / self.std
        if not self.has_tokens:
            return self.net(images)[self.patch].flatten(2).transpose(1, 2)
        own = self.net.patch_embed.img_size
        if images.shape[2:] != own:
            images = F.interpolate(images, own, mode="bicubic", antialias=True)
        tokens = self.net.forward_features(images)[:, self.net.num_prefix_tokens :]
        return self.net.head(tokens) if self.projects else tokens


def _transformer(name: str, weights: str | None, grid: tuple[int, int]) -> nn.Module:
    """timm's transformer for images of ``grid`` patches; random where ``weights`` is None."""
    with torch.device("meta"):
        outline: Any = timm.create_model(name)
    patch = outline.patch_embed.patch_size[0]
    size = (grid[0] * patch, grid[1] * patch)
    if weights is None:
        return timm.create_model(name, img_size=size)
    overlay = {} if weights == "hub" else {"state_dict": read_checkpoint(weights)}
    try:
        return timm.create_model(name, pretrained=True, img_size=size, pretrained_cfg_overlay=overlay)
    except Exception as error:  # no network, or tensors of another network
        raise DataError(
            f"{name} cannot load its weights from {weights} ({error}); without a network give a local file: "
            "--teacher-weights FILE, or a teacher with random weights: --teacher random:NAME"
        ) from error
