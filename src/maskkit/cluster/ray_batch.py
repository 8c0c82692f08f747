"""`predict --cluster`: Ray Data distributes the parts of a run to workers; parts that are written are not repeated.

Only names go through Ray: workers read images and write results themselves. A worker that dies is replaced, and its
part is predicted again under the same name, so each image is in the results exactly once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from maskkit.checkpoints.listing import one_line
from maskkit.cluster.parts import Done, decoded
from maskkit.cluster.sources import LIST, Part, is_table, open_table, parts_of, rows_of, write_list
from maskkit.cluster.storage import Storage, opened
from maskkit.cluster.worker import PARTS, RUN, Job, Worker
from maskkit.errors import DataError, MaskkitError
from maskkit.infer.results import compare_settings
from maskkit.infer.runtimes import require

_STORE = 100 * 2**20
"""Bytes of shared memory of a local Ray: only names go through it."""
_STARTS = 3
"""Attempts to start Ray: on a busy machine one may fail after half a minute."""
_NAMED = 20
"""Largest number of errors that are kept to be shown."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The parts of a run, and which of them are left."""

    storage: Storage
    parts: list[Part]
    done: int
    """Images in parts that an earlier process has written."""
    left: list[Part]

    @property
    def images(self) -> int:
        """Number of images of all parts."""
        return sum(part.images for part in self.parts)


@dataclass(frozen=True)
class Pool:
    """The workers of a run."""

    size: int | None
    """Number of workers; None uses all cores of this machine, or lets Ray choose on a cluster (``RAY_ADDRESS``)."""
    threads: int = 1
    """Processor cores of each worker."""
    gpus: int = 0
    """GPUs of each worker."""


@dataclass
class Counts:
    """What a run has done so far."""

    images: int = 0
    rows: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    """The first ones."""

    def add(self, answer: Mapping[str, Any]) -> None:
        """Count a part."""
        self.images += answer["images"]
        self.rows += answer["rows"]
        self.failed += answer["failed"]
        if answer["error"] and len(self.errors) < _NAMED:
            self.errors.append(answer["error"])


def begin(storage: Storage, settings: Mapping[str, Any], names: Callable[[], Sequence[str]], resume: bool) -> Run:
    """The run in ``storage``: a new one, or the one to continue.

    ``names`` lists files, addresses or Parquet tables; it is called for a new run only, and what it returns is kept.
    Raises `MaskkitError` for a folder with another run, and for tables that hold images mixed with other sources.
    """
    before = RUN in storage.names("")
    if before and not resume:
        raise MaskkitError(
            f"{storage.at(RUN)}: the results of a run are there; give --resume to continue it, or another --out"
        )
    if not before and storage.names(PARTS):
        raise MaskkitError(f"{storage.at(PARTS)}: holds results, but {RUN} beside it is missing; give another --out")
    if before:
        stored = _settings(storage)
        compare_settings(storage.at(RUN), {n: v for n, v in stored.items() if n != "tables"}, settings)
        tables = [open_table(address) for address in stored["tables"]]
        for table, rows in zip(tables, stored["tables"].values(), strict=True):
            if sum(table.groups) != rows:
                raise DataError(f"{table.address}: had {rows} rows when the run began, now {sum(table.groups)}")
    else:
        tables = _tables(storage, names())
        about = {table.address: sum(table.groups) for table in tables}
        storage.write(RUN, json.dumps({**settings, "tables": about}, indent=2).encode())
    parts = parts_of(tables)
    storage.clear(PARTS)
    written = storage.names(PARTS)
    left = [part for part in parts if part.name not in written]
    return Run(storage, parts, sum(p.images for p in parts) - sum(p.images for p in left), left)


def _settings(storage: Storage) -> dict[str, Any]:
    try:
        stored = json.loads(storage.read(RUN))
        if isinstance(stored, dict) and isinstance(stored.get("tables"), dict):
            return stored
    except ValueError:
        pass
    raise DataError(f"{storage.at(RUN)}: is damaged; choose another --out")


def _tables(storage: Storage, names: Sequence[str]) -> list[Any]:
    """The tables of a new run: those that are given, or one of the files that are."""
    given = [open_table(name) for name in names if is_table(name)]
    if given and len(given) == len(names) and all(table.layout != "addresses" for table in given):
        return given
    mixed = next((table.address for table in given if table.layout != "addresses"), None)
    if mixed is not None:
        raise MaskkitError(f"{mixed}: has the content of images; give it without sources that are files or addresses")
    found = chain.from_iterable((n for n, _ in rows_of(open_table(s))) if is_table(s) else [s] for s in names)
    write_list(storage, list(found))
    return [open_table(storage.at(LIST))]


def predict_parts(run: Run, job: Job, pool: Pool) -> Generator[dict[str, Any], None, None]:
    """The answers of the workers (`Worker.__call__`), one per part, as they finish.

    Raises `MaskkitError` for an error that does not concern a single image.
    """
    ray = require("ray", "cluster")
    require("ray.data", "cluster")
    if not run.left:
        return
    own = _start(ray)
    try:
        size = _size(ray, own, pool)
        actors = ray.data.ActorPoolStrategy(size=size) if size else ray.data.ActorPoolStrategy(min_size=1)
        records = ray.data.from_items([part._asdict() for part in run.left], override_num_blocks=len(run.left))
        answers = records.map(
            Worker,
            fn_constructor_args=(job,),
            compute=actors,
            num_cpus=pool.threads,
            num_gpus=pool.gpus,
        )
        for answer in answers.iter_rows():
            if answer["stop"]:
                raise MaskkitError(answer["stop"])
            yield answer
    finally:
        if own:
            ray.shutdown()


def _start(ray: Any) -> bool:
    """Join the cluster at ``RAY_ADDRESS``, or start Ray on this machine; returns whether this call did so."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}  # a worker that dies is replaced
    address = os.environ.get("RAY_ADDRESS")
    here = {} if address else {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**here, **quiet)
            return True
        except Exception as error:  # Ray raises errors of many kinds, some of them bare
            ray.shutdown()
            if not left:
                raise MaskkitError(
                    f"Ray does not start on {address or 'this machine'} ({one_line(error)}); check RAY_ADDRESS, and "
                    "whether the machine is busy"
                ) from None
    raise AssertionError("the last attempt returns or raises")


def _size(ray: Any, own: bool, pool: Pool) -> int | None:
    """The number of workers; None: as many as fit on the cluster. Raises `MaskkitError` for too many."""
    if os.environ.get("RAY_ADDRESS") or not own:
        return pool.size  # a cluster may grow
    have = ray.cluster_resources()
    need = {"CPU": pool.threads} | ({"GPU": pool.gpus} if pool.gpus else {})
    room = min(int(have.get(kind, 0) // each) for kind, each in need.items())
    if (pool.size or 1) > room:
        text = " and ".join(f"{each} of {int(have.get(kind, 0))} {kind}" for kind, each in need.items())
        raise MaskkitError(f"{pool.size or 1} workers with {text} each: there is room for {room}; give fewer --workers")
    return pool.size or room


def read_parts(run: Run) -> Iterator[Done]:
    """The images of all parts, in order. Raises `DataError` for a part that is missing or damaged."""
    for part in run.parts:
        address = run.storage.at(f"{PARTS}/{part.name}")
        with opened(address) as file:
            try:
                yield from decoded(file)
            except (ValueError, KeyError) as error:
                raise DataError(f"{address}: is damaged ({error}); remove it and go on with --resume") from None
