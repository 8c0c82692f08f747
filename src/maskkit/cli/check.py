"""`maskkit check`: the data-set doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from maskkit.cli.console import stdout


def check(
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    out: Path | None = None,
    samples: int = 8,
    decode: bool | None = None,
) -> int:
    """Examine a data set: every bad record and image, what is in it, drawn samples. Fails when there are errors.

    Example: maskkit check pets/ --out pets-samples

    Args:
        data: Folder or annotation file, of any format.
        out: Folder for drawn samples; none are drawn when not given.
        samples: How many images of each split are drawn.
        decode: Whether every pixel is read, or headers alone; pixels up to 5000 images when not given.
    """
    from maskkit.data import check
    from maskkit.infer.samples import save_samples

    report = check.check(data, decode, progress=sys.stderr.isatty())
    report.print(stdout())
    if out is not None:
        for split, dataset in report.datasets.items():
            files = save_samples(dataset, out / split, samples)
            print(f"{len(files)} samples of {split}: {out / split}")
    return 1 if report.errors else 0
