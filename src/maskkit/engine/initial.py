"""Initial weights of a training: the best that there are, those that are asked for, or random ones.

Whatever a run starts from is printed, is in its report, and is in ``config.json`` under ``start``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskkit.checkpoints import find, hub
from maskkit.checkpoints.foreign import read_checkpoint, read_tensors
from maskkit.checkpoints.header import categories_of, is_checkpoint, read_header
from maskkit.config import InputConfig, RunConfig, change
from maskkit.errors import DataError, MaskkitError
from maskkit.files import digest as file_digest
from maskkit.models.base import Model
from maskkit.nn.backbones.pretrained import Pretrained
from maskkit.nn.finite import check_finite
from maskkit.prediction import Categories


@dataclass(frozen=True)
class Start:
    """Where the initial weights of a run come from."""

    source: str
    """A file, ``built-in``, ``built-in mobilenetv2``, ``timm: NETWORK``, ``torchvision: WEIGHTS``, or ``random``."""
    sha256: str | None
    """Of the file, or of the downloaded tensors; None for random weights."""
    taken: int
    """How many tensors of the model come from there; the others are random."""
    tensors: int
    """How many the model has."""
    note: str
    """A line for the user."""

    def facts(self) -> dict[str, Any]:
        """What ``config.json`` records under ``start``."""
        return {"source": self.source, "sha256": self.sha256, "tensors": self.taken, "of": self.tensors}


def start_weights(
    model: Model, config: RunConfig, categories: Categories, weights: str | Path | None = find.AUTO
) -> Start:
    """Load initial weights into a new model of ``categories``.

    ``weights`` is a maskkit checkpoint, a file with timm's names for the backbone, ``"random"``, or ``"auto"`` (also
    None). A checkpoint gives all tensors of the same name and shape; those that depend on the classes only for classes
    of the same names. ``"auto"`` takes the backbone's weights that the configuration names, else the built-in model or
    the MobileNetV2 in the package if one has this backbone, else the weights that are published for the preset, else
    timm's weights of the backbone; where none can be had, for lack of a network, the weights are random and the note is
    a warning. Raises `DataError` when what is asked for cannot be read or does not fit.
    """
    if weights == find.RANDOM:
        return _random(model, "as --weights random asks")
    if weights is not None and weights != find.AUTO:
        if is_checkpoint(Path(weights)):
            name = find.BUILT_IN if Path(weights) == find.BUILT_IN_WEIGHTS else str(weights)
            return _from_checkpoint(model, config, categories, Path(weights), name)
        return _from_backbone(model, config, str(weights))
    if config.model.backbone_weights is not None:
        return _from_backbone(model, config, config.model.backbone_weights)
    return _best(model, config, categories)


def load_backbone(backbone: Pretrained, source: str | Path) -> list[str]:
    """Load a local file with timm's names, or timm's own download for ``hub``; returns the names without a place.

    Raises `DataError` when the file cannot be read or does not fit.
    """
    state = backbone.download() if str(source) == hub.HUB else read_checkpoint(source)
    return backbone.load_weights(state, source)


def _best(model: Model, config: RunConfig, categories: Categories) -> Start:
    """The first start that can be had: built-in, published, timm's backbone, random."""
    for name, file in ((find.BUILT_IN, find.BUILT_IN_WEIGHTS), (find.MOBILENET, find.MOBILENET_WEIGHTS)):
        if _has_backbone_of(model, file):
            return _from_checkpoint(model, config, categories, file, name)
    reasons = []
    if hub.can_fetch(config.preset):
        try:
            file = hub.fetch(config.preset)
            return _from_checkpoint(model, config, categories, file, hub.published_name(config.preset))
        except MaskkitError as error:  # no network, or a licence that was not accepted
            reasons.append(str(error))
    backbone = _backbone(model)
    if isinstance(backbone, Pretrained) and not backbone.is_of_timm:
        reasons.append(f"no published weights have the sizes of its {backbone.timm_name}")
    elif isinstance(backbone, Pretrained):
        try:
            return _from_backbone(model, config, hub.HUB)
        except DataError as error:
            reasons.append(str(error))
    if reasons:
        return _random(model, "; ".join(reasons), warn=True)
    return _random(model, f"nothing is published that {config.preset} could start from; --weights FILE gives it more")


def _random(model: Model, why: str, warn: bool = False) -> Start:
    tensors = len(model.state_dict())
    note = f"all weights start from random values: {why}"
    if warn:
        note = (
            f"WARNING: {note}. From random values a model needs many times the images and steps; the best start is "
            "--weights with a checkpoint of this preset, the next best --model.backbone.weights FILE"
        )
    return Start(find.RANDOM, None, 0, tensors, note)


def _from_checkpoint(model: Model, config: RunConfig, categories: Categories, path: Path, name: str) -> Start:
    own, given = model.state_dict(), _tensors(path)
    fitting = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape}
    if not fitting:
        raise DataError(f"{path}: no tensor fits {config.preset} by name and shape; give weights of the same preset")
    check_finite(fitting, path)
    theirs = categories_of(read_header(path))
    known = categories.numbers_in(theirs)
    classes = ""
    if len(known) < len(categories) or len(theirs) != len(categories) or any(i != n for i, n in known.items()):
        dependent = _class_tensors(model, config) if known or len(theirs) == len(categories) else set()
        fitting = {n: t for n, t in fitting.items() if n not in dependent}
        rows = {n: _rows(own[n], given[n], known, len(theirs)) for n in dependent if n in given}
        fitting |= {n: t for n, t in rows.items() if t is not None}
        if any(t is not None for t in rows.values()):
            classes = f"; of the classes, {_some([categories.names[i] for i in known])} are known there"
    model.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    if left:  # what copies layers of the backbone begins as they do, unless it is in the file itself
        model.adopt_backbone()
        model.load_state_dict(fitting, strict=False)
    note = f"{len(fitting)} of {len(own)} tensors start from {name}"
    note += f"; random values for {_some(left)}" if left else ""
    return Start(name, file_digest(path), len(fitting), len(own), note + classes)


def _class_tensors(model: Model, config: RunConfig) -> set[str]:
    """The tensors whose shape depends on the number of classes."""
    more = change(config.model, num_classes=config.model.num_classes + 1)
    with torch.random.fork_rng(devices=[]):
        other = type(model)(more).state_dict()
    return {n for n, t in model.state_dict().items() if n not in other or other[n].shape != t.shape}


def _rows(own: Tensor, given: Tensor, known: Mapping[int, int], classes: int) -> Tensor | None:
    """``own`` with the rows of the classes in ``known`` (number here to number there), where each class has one row.

    None where no class is known, and where rows are shared by classes.
    """
    if not known or own.ndim == 0 or given.ndim != own.ndim or own.shape[1:] != given.shape[1:]:
        return None
    if given.shape[0] != classes or own.shape[0] <= max(known):
        return None
    merged = own.detach().clone()
    for here, there in known.items():
        merged[here] = given[there].to(merged.dtype)
    return merged


def _from_backbone(model: Model, config: RunConfig, source: str) -> Start:
    """The backbone from a file with timm's names, or from timm's own download."""
    backbone = _backbone(model)
    if not isinstance(backbone, Pretrained):
        raise DataError(f"{source}: {config.preset} has no backbone that timm knows; give a maskkit checkpoint")
    if source == hub.HUB:
        state = backbone.download()
        digest, name = _digest_of(state), f"timm: {backbone.timm_name}"
        state = _for_input(state, backbone, config.input)
    else:
        state, digest, name = read_checkpoint(source), file_digest(Path(source)), source
    unused = backbone.load_weights(state, source)
    model.adopt_backbone()
    note = f"the backbone starts from {name}" + (f"; not used: {_some(unused)}" if unused else "")
    return Start(name, digest, len(backbone.timm_part.state_dict()), len(model.state_dict()), note)


def _for_input(state: dict[str, Tensor], backbone: Pretrained, input: InputConfig) -> dict[str, Tensor]:
    """timm's weights for images that are divided by the ``std`` of ``input``, which may not be timm's own."""
    std = backbone.timm_std
    first = next(
        (n for n, m in backbone.timm_part.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3), None
    )
    key = f"{first}.weight"
    if std is None or key not in state:
        return state
    ratio = torch.tensor(input.std) / (255 * torch.tensor(std))
    return {**state, key: state[key] * ratio.to(state[key])[:, None, None]}


def _backbone(model: Model) -> nn.Module | None:
    return dict(model.named_children()).get("backbone")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, also under the names that they have where its network is the body of a backbone.

    So a model on `maskkit.nn.backbones.nanodet.NanoDetFeatures` finds these parts in a NanoInst.
    """
    tensors = read_tensors(path)
    return {**{f"backbone.body.{name}": tensor for name, tensor in tensors.items()}, **tensors}


def _has_backbone_of(model: Model, path: Path) -> bool:
    """Whether the checkpoint ``path`` has every tensor of the model's backbone."""
    wanted = {n: t.shape for n, t in model.state_dict().items() if n.startswith("backbone.")}
    if not wanted or not path.is_file():
        return False
    given = _tensors(path)
    return all(n in given and given[n].shape == shape for n, shape in wanted.items())


def _digest_of(state: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
