"""`maskkit convert`: write a data set in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from maskkit.terminal import say


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    to: Literal["coco", "yolo", "labelme"],
) -> int:
    """Convert a data set to another format, with its images, splits and objects.

    Example: maskkit convert pets/ pets-yolo/ --to yolo

    Args:
        src: Folder or annotation file, in any format.
        dst: Folder to create.
        to: Format to write.
    """
    from maskkit.data.convert import convert

    counts = convert(src, dst, to, progress=sys.stderr.isatty())
    say(f"{dst}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["problems"]:
        say(f"records with problems were left out; list them: maskkit check {src}")
    return 0
