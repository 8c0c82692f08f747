"""`maskkit convert`: write a data set in another format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.data.target_formats import TargetFormat
from maskkit.terminal import say


def convert(
    src: Annotated[Positional[Path], arg(metavar="SRC")],
    dst: Annotated[Positional[Path], arg(metavar="DST")],
    to: TargetFormat,
    allow_outside: bool = False,
) -> int:
    """Convert a data set to another format, with its images, splits and labels; what is lost is counted.

    Example: maskkit convert pets/ pets-yolo/ --to yolo

    Args:
        src: Folder or annotation file, in any format.
        dst: Folder to create.
        to: Format to write; png means label maps.
        allow_outside: Copy images from outside of the data set's folder too.
    """
    from maskkit.data.convert import convert

    counts = convert(src, dst, to, sys.stderr.isatty(), allow_outside)
    say(f"{dst}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    if counts["problems"]:
        say(f"the problems, and what was left out for them: maskkit check {src}")
    return 0
