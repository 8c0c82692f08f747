"""`maskkit check`: find problems in a data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from maskkit.cli.console import progress, stdout
from maskkit.cli.options import Fetch
from maskkit.ranges import Batch, Whole
from maskkit.terminal import complain, say

if TYPE_CHECKING:
    from collections.abc import Mapping

    from maskkit.api import Segmenter
    from maskkit.data.dataset import Dataset
    from maskkit.eval.instance.label_errors import Suspect


def check(
    data: Annotated[Positional[Path], arg(metavar="DATA")],
    out: Path | None = None,
    samples: Whole = 8,
    decode: bool | None = None,
    allow_outside: bool = False,
    model: str | None = None,
    top: Whole = 20,
    batch: Batch = 1,
    device: str | None = None,
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Check a data set: list bad records and images, count objects, draw samples. Fails when there are errors.

    With a model, also list the labels that are likely to be wrong: missed objects, wrong classes, loose masks.

    Example: maskkit check pets/ --out pets-samples

    Example: maskkit check pets/ --model runs/pets/best.safetensors --out pets-samples

    Args:
        data: Folder or annotation file, in any format.
        out: Folder for drawn samples; by default none are drawn.
        samples: Number of images to draw from each split.
        decode: Whether to decode every image or read headers only; by default up to 5000 images are decoded.
        allow_outside: Use images outside of the data set's folder too.
        model: Compare the labels with the predictions of this model: a checkpoint, or anything else that predict takes.
            A model that was trained on other images finds more errors than one that was trained on these labels.
        top: Number of likely errors to list; label_errors.csv in OUT has all of them.
        batch: Images per forward pass of the model.
        device: cpu, cuda, cuda:1, mps; by default an accelerator where there is one.
        fetch: Downloads.
    """
    fetch.apply()
    from maskkit.data import check
    from maskkit.infer.samples import save_samples

    report = check.check(data, decode, sys.stderr.isatty(), allow_outside)
    report.print(stdout())
    if out is not None:
        for split, dataset in report.datasets.items():
            files = save_samples(dataset, out / split, samples)
            say(f"{len(files)} samples of {split}: {out / split}")
    if model is not None:
        from maskkit.api import load

        _list_label_errors(load(model, device, throughput=True), report.datasets, batch, top, out)
    return 1 if report.errors else 0


def _list_label_errors(
    segmenter: Segmenter, datasets: Mapping[str, Dataset], batch: int, top: int, out: Path | None
) -> None:
    """Print the most likely errors of all splits, and write all to ``out``. Raises `MaskkitError`, `DataError`."""
    from maskkit.errors import MaskkitError
    from maskkit.eval.instance.label_errors import in_turns, suspects, table, write_suspects

    if segmenter.task.noun != "objects":
        raise MaskkitError("check --model takes a model that finds objects; this one gives every pixel a class")
    found: list[tuple[str, Path, Suspect]] = []
    with progress() as bars:
        bar = bars.add_task("comparing", total=sum(map(len, datasets.values())))
        for split, dataset in datasets.items():
            rows, shared = segmenter.detect(dataset, batch, progress=lambda n: bars.advance(bar, n))
            labelled, known = segmenter.task.view(dataset), shared.categories.ids
            if unknown := len(labelled.categories) - len(known):
                complain(f"{split}: the model knows {len(known)} of the classes, labels of {unknown} are not judged")
            paths = {record.image_id: record.path for record in labelled.records}
            found += [(split, paths[s.image_id], s) for s in suspects(rows, labelled.truth(), known)]
    ranked = in_turns(found, lambda item: item[2])
    if top and ranked:
        stdout().print(table(ranked[:top]))
    say(f"{len(ranked)} labels differ from what the model finds")
    if out is not None:
        write_suspects(out / "label_errors.csv", ranked)
        say(f"all of them, the most suspicious first: {out / 'label_errors.csv'}")
