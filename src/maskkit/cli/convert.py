"""`maskkit convert`: a data set in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    to: Literal["coco", "yolo", "labelme"],
) -> int:
    """Write a data set of any format in another one: images, splits and objects.

    Example: maskkit convert pets/ pets-yolo/ --to yolo

    Args:
        src: Folder or annotation file.
        dst: New folder.
        to: Format to write.
    """
    from maskkit.data.convert import convert

    counts = convert(src, dst, to, progress=sys.stderr.isatty())
    print(f"{dst}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["problems"]:
        print(f"problems leave records out; see them all: maskkit check {src}")
    return 0
