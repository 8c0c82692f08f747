"""hszhao/semseg (MIT): names of its PSPNet checkpoints."""

import re

from torch import Tensor

from maskkit.errors import DataError

_RULES = [
    (r"layer0\.([01346])\.(.+)", r"backbone.body.conv1.\1.\2"),
    (r"layer0\.7\.(.+)", r"backbone.body.bn1.\1"),
    (r"(layer[1-4]\..+)", r"backbone.body.\1"),
    (r"ppm\.features\.(\d)\.1\.(.+)", r"pyramid.reduce.\1.0.\2"),
    (r"ppm\.features\.(\d)\.2\.(.+)", r"pyramid.reduce.\1.1.\2"),
    (r"cls\.([014]\..+)", r"score.\1"),
    (r"aux\.([014]\..+)", r"auxiliary.\1"),
]


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no PSPNet has."""
    return {_name(n.removeprefix("module.")): t for n, t in state.items()}


def _name(name: str) -> str:
    for pattern, ours in _RULES:
        if m := re.fullmatch(pattern, name):
            return m.expand(ours)
    raise DataError(f"{name!r} is no tensor of a PSPNet checkpoint")
