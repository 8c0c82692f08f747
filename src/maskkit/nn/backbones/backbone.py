"""Backbones as ``{stride: feature}``: any timm model, CSPNeXt, NanoDet's; batch norm frozen or folded."""

from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.weak import WeakIdKeyDictionary

from maskkit.config import BackboneConfig, PlainVit
from maskkit.errors import MaskkitError
from maskkit.nn.backbones import cspnext, entries, nanodet, swin
from maskkit.nn.backbones import vit as plain
from maskkit.nn.backbones.names import check_name
from maskkit.nn.backbones.pretrained import Pretrained

_OWN: dict[str, tuple[int, ...]] = {**dict.fromkeys(cspnext.SIZES, cspnext.STRIDES), nanodet.NAME: nanodet.STRIDES}
"""Strides of the networks that timm does not have."""


class Backbone(Pretrained):
    """A timm feature extractor; `forward` gives ``{stride: (B, C, H/stride, W/stride)}``.

    ``norm="frozen"`` keeps batch norm in evaluation mode without gradients, whatever ``train()`` says. ``channels``
    maps each stride to its channels. Layers up to ``frozen_stride`` are frozen. ``stride_in_1x1`` moves the stride of
    ResNet's stages into their first 1x1 convolution, as weights from Caffe need. ``vit`` configures the plain
    transformers of `maskkit.nn.backbones.vit`. Names of `maskkit.nn.backbones.cspnext.SIZES` give a CSPNeXt,
    ``nanodet_plus_m`` gives `NanoDetFeatures`, which have batch norm with ``norm="train"`` only.
    Of a MobileNetV3 the stride -32 is the output of the first block of stride 32 (`maskkit.nn.backbones.entries`).
    `maskkit.nn.dilation.dilate` replaces strides by dilation. Raises `MaskkitError` for a name, stride or option that
    the network does not have.
    """

    channels: dict[int, int]
    body: Any
    """timm's network, whose parameters have timm's names, or a `VitPyramid` around one."""

    def __init__(
        self,
        name: str,
        strides: Sequence[int] = (8, 16, 32),
        *,
        norm: str = "frozen",
        pad_same: bool = False,
        frozen_stride: int = 0,
        stride_in_1x1: bool = False,
        vit: PlainVit | None = None,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.norm = norm
        self.norms: nn.ModuleList | None = None
        """Layer norms of Swin's features."""
        self.places: dict[int, entries.Place] = {}
        """Where features come from, if one of them comes from inside a stage."""
        if name in _OWN:
            self._take_own(name, bool(frozen_stride or stride_in_1x1 or pad_same))
            return
        check_name(name)
        if plain.is_plain(name):
            if frozen_stride or stride_in_1x1 or min(strides) < 0:
                raise MaskkitError(
                    f"{name} has one stride for all its blocks: set --model.backbone.frozen-stride 0 and "
                    "--model.backbone.no-stride-in-1x1, and take a method that does not dilate"
                )
            vit = vit or PlainVit()
            self.body = plain.VitPyramid(name, strides, vit)
            self.channels = dict.fromkeys(strides, vit.width)
            return
        options: dict = {"pad_type": "same"} if pad_same else {}
        if swin.is_swin(name):
            options |= swin.OPTIONS
        try:
            info: Any = timm.create_model(name, features_only=True, **options).feature_info
        except (RuntimeError, AttributeError, TypeError, ValueError, KeyError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise MaskkitError(f"timm's {name} gives no features of its stages ({reason}); take another one") from None
        reductions = info.reduction()
        if lacking := [s for s in strides if abs(s) not in reductions]:
            raise MaskkitError(f"{name} has features at strides {reductions}, not at {lacking}; take another backbone")
        indices = sorted({max(i for i, r in enumerate(reductions) if r == abs(s)) for s in strides})
        self.body = timm.create_model(name, features_only=True, out_indices=indices, **options)
        if hasattr(self.body, "blocks"):  # timm would also run the blocks whose features are not used
            last = int(self.body.feature_info.module_name()[-1].split(".")[1])
            del self.body.blocks[last + 1 :]
        if stride_in_1x1:
            self._stride_first(name)
        if min(strides) < 0:
            self.places, self.channels = entries.places(self.body, name, strides)
        else:
            self.channels = dict(zip(strides, self.body.feature_info.channels(), strict=True))
        if swin.is_swin(name):
            swin.replace_blocks(self.body)
            self.norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels.values())
        self._freeze_norms()
        if frozen_stride:
            if frozen_stride < min(reductions):
                raise MaskkitError(f"frozen_stride is {frozen_stride}; {name} has strides {reductions}, 0 freezes none")
            last = info.module_name()[max(i for i, r in enumerate(reductions) if r <= frozen_stride)]
            self._freeze_until(last)
        self.train()  # modules start in training mode, but frozen batch norm must not

    @classmethod
    def of(cls, config: BackboneConfig, strides: Sequence[int] = (8, 16, 32)) -> "Backbone":
        """The backbone that ``config`` describes, with features at ``strides``."""
        return cls(
            config.name,
            strides,
            norm=config.norm,
            pad_same=config.pad_same,
            frozen_stride=config.frozen_stride,
            stride_in_1x1=config.stride_in_1x1,
            vit=config.vit,
        )

    def _take_own(self, name: str, unknown_option: bool) -> None:
        if unknown_option:
            raise MaskkitError(
                f"{name} is trained as a whole and has no bottlenecks: set --model.backbone.frozen-stride 0, "
                "--model.backbone.no-stride-in-1x1 and --model.backbone.no-pad-same"
            )
        if lacking := [s for s in self.strides if s not in _OWN[name]]:
            raise MaskkitError(f"{name} has features at strides {[*_OWN[name]]}, not at {lacking}")
        if name == nanodet.NAME:
            self.body = nanodet.NanoDetFeatures(self.strides, self.norm == "train")
        else:
            self.body = cspnext.CspNext(name, self.strides)
        self.channels = self.body.channels
        self._freeze_norms()
        self.train()

    def _freeze_norms(self) -> None:
        if self.norm == "frozen":
            for module in self._norms():
                module.requires_grad_(False)

    @property
    def timm_name(self) -> str:
        """timm's name of the network, or ours of one that timm does not have."""
        if isinstance(self.body, cspnext.CspNext | nanodet.NanoDetFeatures):
            return self.body.name
        return self.timm_part.default_cfg["architecture"]

    @property
    def timm_part(self) -> Any:
        """The network inside; the pyramid around a plain transformer has no names of timm's."""
        return self.body.net if self.whole else self.body

    @property
    def whole(self) -> bool:
        """Whether timm's network is not taken apart: a plain transformer is not."""
        return isinstance(self.body, plain.VitPyramid)

    @property
    def is_of_timm(self) -> bool:
        """Whether timm's weights fit; those of a plain transformer are resampled (`resize`)."""
        return self.whole or (self.timm_name not in _OWN and super().is_of_timm)

    def resize(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Positions and patches of a plain transformer in the sizes of this one; other weights as they are."""
        return plain.fit(state, self.body.net) if self.whole else state

    def _stride_first(self, name: str) -> None:
        blocks = [m for m in self.body.modules() if isinstance(m, Bottleneck)]
        if not blocks:
            raise MaskkitError(f"{name} has no bottleneck blocks, stride_in_1x1 is for ResNet-50 and larger")
        for block in blocks:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _freeze_until(self, module: str) -> None:
        """Freeze every parameter up to the end of ``module``; modules are in forward order."""
        named = list(self.body.named_modules())
        own = (module, module.replace(".", "_"))
        inside = [i for i, (n, _) in enumerate(named) if n in own or n.startswith(tuple(f"{o}." for o in own))]
        for _, part in named[: max(inside) + 1]:
            for parameter in part.parameters(recurse=False):
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; frozen batch norm stays in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self._norms():
                module.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Tensor]:
        """Features by stride."""
        if self.places:
            return entries.features(self.body, images, self.places)
        features = self.body(images)
        if self.norms is not None:  # Swin's maps have their channels last
            features = [norm(f).permute(0, 3, 1, 2) for norm, f in zip(self.norms, features, strict=True)]
        return dict(zip(self.strides, features, strict=True))


@torch.no_grad()
def fold_batch_norm(model: nn.Module, example: Float[Tensor, "1 3 h w"]) -> nn.Module:
    """Fold every batch norm that follows a convolution into it: the same function in inference, but faster.

    One forward pass of ``example`` finds out which norm reads the output of which convolution. A convolution with
    several norms, one for each level of a pyramid, say, stays as it is. Changes ``model`` in place.
    """
    model.eval()
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        return model  # the forward pass of a large transformer takes minutes
    made_by: MutableMapping[Tensor, nn.Conv2d] = WeakIdKeyDictionary()  # keeps no output alive
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []

    def remember(module: nn.Module, _: object, output: Tensor) -> None:
        made_by[output] = module  # type: ignore[assignment]

    def pair(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0] in made_by:
            pairs.append((made_by.pop(inputs[0]), module))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(remember))
        elif isinstance(module, nn.BatchNorm2d | BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(pair))
    model(example)
    for hook in hooks:
        hook.remove()

    names = {module: name for name, module in model.named_modules()}
    once = list(dict.fromkeys(pairs))  # each once, however often the model has used it
    norms = Counter(conv for conv, _ in once)
    for conv, norm in once:
        if norms[conv] > 1:
            continue
        fused = fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var]
        conv.weight, conv.bias = fused.weight, fused.bias
        rest = nn.Sequential(*norm.children()) if isinstance(norm, BatchNormAct2d) else nn.Identity()  # dropout, ReLU
        parent, _, child = names[norm].rpartition(".")
        setattr(model.get_submodule(parent), child, rest)
    return model
