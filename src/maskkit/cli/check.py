"""`maskkit check`: find problems in a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.cli.console import stdout
from maskkit.ranges import Whole
from maskkit.terminal import say


def check(
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    out: Path | None = None,
    samples: Whole = 8,
    decode: bool | None = None,
    allow_outside: bool = False,
) -> int:
    """Check a data set: list bad records and images, count objects, draw samples. Fails when there are errors.

    Example: maskkit check pets/ --out pets-samples

    Args:
        data: Folder or annotation file, in any format.
        out: Folder for drawn samples; without it none are drawn.
        samples: Number of images to draw from each split.
        decode: Whether to decode every image or read headers only; by default images are decoded up to 5000 of them.
        allow_outside: Use images outside of the data set's folder too.
    """
    from maskkit.data import check
    from maskkit.infer.samples import save_samples

    report = check.check(data, decode, sys.stderr.isatty(), allow_outside)
    report.print(stdout())
    if out is not None:
        for split, dataset in report.datasets.items():
            files = save_samples(dataset, out / split, samples)
            say(f"{len(files)} samples of {split}: {out / split}")
    return 1 if report.errors else 0
