"""Names of published EPS checkpoints (github.com/halbielee/EPS), and of its baseline's, on ResNet-38.

Blocks are called ``b2``, ``b2_1``, ``b2_2``, ``b3``, ...; branch 1 is the shortcut, the parts of branch 2 follow each
other as ``2a``, ``2b1``, ``2b2``.
"""

import re

from torch import Tensor

from maskkit.errors import DataError

_KINDS = {"bn": "norms", "conv": "convs"}
_PARTS = {"2a": 0, "2b1": 1, "2b2": 2}
_ENDS = {"conv1a": "backbone.stem", "bn7": "backbone.last_norm", "fc8": "score"}


def rename(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; `DataError` for a name that no EPS network has."""
    return {_name(n): t for n, t in state.items()}


def _name(name: str) -> str:
    if m := re.fullmatch(r"(conv1a|bn7|fc8)\.(\w+)", name):
        return f"{_ENDS[m[1]]}.{m[2]}"
    if m := re.fullmatch(r"b([2-7])(?:_(\d))?\.(?:conv_branch1|(bn|conv)_branch(2a|2b1|2b2))\.(\w+)", name):
        part = f"{_KINDS[m[3]]}.{_PARTS[m[4]]}" if m[3] else "shortcut"
        return f"backbone.stages.{int(m[1]) - 2}.{m[2] or 0}.{part}.{m[5]}"
    raise DataError(f"{name!r} is no tensor of an EPS checkpoint")
