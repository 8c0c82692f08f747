"""`maskkit predict --cluster`: many images on many machines, with results in Parquet files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskkit.cli.console import progress
from maskkit.cli.image_files import image_files
from maskkit.errors import MaskkitError
from maskkit.terminal import complain, say

if TYPE_CHECKING:
    from maskkit.api import Segmenter
    from maskkit.cluster.ray_batch import Counts, Pool, Run
    from maskkit.cluster.worker import Job
    from maskkit.infer.predict import Failure
    from maskkit.infer.selection import Selection


def predict_on_cluster(
    segmenter: Segmenter,
    load: Callable[[], Segmenter],
    sources: Sequence[str],
    settings: Mapping[str, Any],
    out: str,
    pool: Pool,
    *,
    selection: Selection,
    batch: int,
    coco: bool,
    resume: bool,
) -> int:
    """Predict the sources, write the results and return the exit code. ``load`` makes the model in each worker.

    ``settings`` are those of `Results`. A ``KeyboardInterrupt`` gets a message on how to continue.
    """
    from maskkit.cluster.ray_batch import Counts, begin, predict_parts
    from maskkit.cluster.storage import Storage, is_address
    from maskkit.engine.lock import Lock

    storage = Storage(out)
    failures: list[Failure] = []
    job = _job(load, sources, settings, storage.address, selection, batch, pool)
    settings = {**settings, "sources": list(sources), "directory": job.directory if job.relative else None}
    counts, began = Counts(), time.monotonic()
    with ExitStack() as stack:
        if not is_address(out):
            lock = Lock(Path(out))
            lock.take()
            stack.callback(lock.free)
        run = begin(storage, settings, lambda: _names(sources, failures), resume)
        try:
            with progress() as bars:
                bar = bars.add_task("predicting", total=run.images, completed=run.done)
                for answer in predict_parts(run, job, pool):
                    counts.add(answer)
                    bars.advance(bar, answer["images"])
        except KeyboardInterrupt as error:
            error.args = (f"interrupted; {_kept(run, counts.images)}",)
            raise
        except MaskkitError as error:
            raise type(error)(f"{error}; {_kept(run, counts.images)}") from None
        seconds = time.monotonic() - began
        if coco:
            _write_coco(segmenter, run)
    return _report(segmenter, run, counts, seconds, failures)


def _job(
    load: Callable[[], Segmenter],
    sources: Sequence[str],
    settings: Mapping[str, Any],
    out: str,
    selection: Selection,
    batch: int,
    pool: Pool,
) -> Job:
    """What the workers do. They need the working directory of this process if a source or the model is relative."""
    from maskkit.cluster.sources import is_table
    from maskkit.cluster.storage import is_address
    from maskkit.cluster.worker import Job

    paths = [s for s in sources if not is_address(s)]
    model = str(settings["model"])
    files = [*paths, model] if os.path.isfile(model) else paths  # else it is a name, or an address of the Hub
    folders = {_folder(path) for path in paths}
    is_near = not pool.gpus and not any(is_address(s) or is_table(s) for s in sources)  # a table may hold addresses
    return Job(
        model=model,
        weights=settings["weights"],
        load=load,
        selection=selection,
        score=settings["score"],
        batch=batch,
        out=out,
        directory=os.getcwd(),
        relative=any(not os.path.isabs(path) for path in files),
        folders=tuple(sorted(os.path.abspath(folder) for folder in folders)),
        readers=1 if is_near else Job.readers,
    )


def _folder(source: str) -> str:
    """The folder of a source that is there: the source itself, or the last one above a file or a pattern."""
    while not os.path.isdir(source):
        source = os.path.dirname(source) or "."
    return source


def _report(segmenter: Segmenter, run: Run, counts: Counts, seconds: float, failures: Sequence[Failure]) -> int:
    """Print what was found and what failed; returns the exit code."""
    speed = f", {counts.images / seconds:.1f} images/s" if counts.images else ""
    earlier = f" and {run.done} images done before" if run.done else ""
    say(f"{counts.rows} {segmenter.task.noun} in {counts.images} images{earlier}{speed}: {run.storage.at('parts')}")
    for message in [str(failure.error) for failure in failures] + counts.errors:
        complain(message)
    if failed := counts.failed + len(failures):
        more = "; the column 'error' names all images" if counts.failed > len(counts.errors) else ""
        complain(f"{failed} sources failed{more}")
    return 1 if failed else 0


def _kept(run: Run, images: int) -> str:
    return (
        f"{run.done + images} of {run.images} images are kept in {run.storage.address}: go on with the same command "
        "and --resume"
    )


def _names(sources: Sequence[str], failures: list[Failure]) -> list[str]:
    """The files, addresses and Parquet tables that ``sources`` name; sources without any are added to ``failures``.

    Raises `DataError` where no source has any.
    """
    from maskkit.cluster.sources import addresses
    from maskkit.cluster.storage import is_address
    from maskkit.errors import DataError
    from maskkit.infer.predict import Failure

    names: list[str] = []
    for source in sources:
        try:
            names += addresses(source) if is_address(source) else map(str, image_files([source], failures))
        except DataError as error:
            failures.append(Failure(source, error))
    if not names and failures:
        raise failures[0].error
    return names


def _write_coco(segmenter: Segmenter, run: Run) -> None:
    """The results files of the task, as `predict` writes them."""
    from maskkit.cluster.ray_batch import read_parts
    from maskkit.eval.rows import StoredRows
    from maskkit.files import write_json

    folder = Path(run.storage.address)

    def images() -> Iterator[dict[str, Any]]:
        for done in read_parts(run):
            if done.size is not None:
                yield {"id": done.image_id, "file_name": done.image, "height": done.size[0], "width": done.size[1]}

    def rows() -> Iterator[list[dict[str, Any]]]:
        return (done.rows for done in read_parts(run) if done.size is not None)

    count = sum(map(len, rows()))
    segmenter.task.write_results(folder, StoredRows(rows, count), images(), segmenter.categories)
    write_json(folder / "images.json", images())
