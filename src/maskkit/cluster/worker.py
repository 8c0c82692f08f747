"""A worker: a process with one model, which predicts one part after another with the loop of `predict`."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import maskkit
from maskkit.checkpoints.find import find_weights
from maskkit.checkpoints.listing import one_line
from maskkit.cluster.parts import Done, encoded
from maskkit.cluster.sources import Part, items_of
from maskkit.cluster.storage import Storage
from maskkit.errors import DataError, MaskkitError, explain
from maskkit.files import digest
from maskkit.infer.predict import Failure
from maskkit.infer.selection import Selection
from maskkit.infer.sources import Item

if TYPE_CHECKING:
    from maskkit.api import Segmenter

RUN = "run.json"
"""The settings of a run, in its folder."""
PARTS = "parts"
"""The folder of the results."""
BEGUN = "begun"
"""The folder of notes about parts in progress: they tell a worker about the workers that died at its part before."""
_CAREFUL = 3
"""From this attempt at a part on, its images are predicted one by one, and each is noted first."""
_DEADLY = 2
"""An image at which this number of workers have died is given up."""
_HOPELESS = 12
"""The run ends at this attempt at a part, if no attempt has reached an image."""


@dataclass(frozen=True)
class Job:
    """What all workers of a run do."""

    model: str
    weights: str
    """Checksum of the model's file."""
    load: Callable[[], Segmenter]
    """Makes the model in the process of a worker, so it has to be picklable."""
    selection: Selection
    score: float
    batch: int
    out: str
    directory: str
    """The working directory of the command, for relative paths."""
    relative: bool = False
    """Whether the command has a relative path."""
    folders: tuple[str, ...] = ()
    """Folders of images that existed when the run began."""
    readers: int = 4
    """Threads of each worker that read ahead; more of them hide the latency of a storage, but slow a CPU down."""


class Worker:
    """Predicts parts and writes their results; Ray makes one in each of its processes."""

    def __init__(self, job: Job) -> None:
        self.job, self.storage = job, Storage(job.out)
        self._segmenter: Segmenter | None = None

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Predict the `Part` ``record`` and write its results; returns its number and counts.

        An error that does not concern a single image is returned as ``stop``: Ray would show an exception with a
        traceback.
        """
        part, done, stop = Part(**record), list[Done](), ""
        try:
            done = self._predict(part)
            self.storage.write(f"{PARTS}/{part.name}", encoded(done, self._model().categories, *self._made_with()))
        except OSError as error:  # FileError too
            stop = explain(error)
        except MaskkitError as error:
            stop = str(error)
        self.storage.remove(f"{BEGUN}/{part.name}.json")  # this worker has not died
        return _answer(part, sum(len(d.rows) for d in done), [d.error for d in done if d.error is not None], stop)

    def _predict(self, part: Part) -> list[Done]:
        note = _Note.begin(self.storage, part)
        if note.begun >= _HOPELESS and not note.deaths:
            raise MaskkitError(
                f"{note.begun} workers died at {part.name} before its first image; look for a lack of memory, or give "
                "fewer --workers"
            )
        if note.begun >= _CAREFUL:
            return list(self._one_by_one(part, note))
        try:
            return self._together(part)
        except MaskkitError:
            raise
        except Exception:  # a bug that one image triggers must not end a run of millions
            return list(self._one_by_one(part))

    def _together(self, part: Part) -> list[Done]:
        names: dict[int, str] = {}

        def noted() -> Iterator[Item]:
            for number, item in enumerate(items_of(part), part.first):
                names[number] = item.name
                yield item

        found, failures = self._found(noted(), self.job.batch)
        missing = [number for number in names if number not in found]  # in the order of the failures
        if failures:
            self._refuse_vanished()
        for number, failure in zip(missing, failures, strict=True):
            found[number] = Done(number, names[number], None, [], str(failure.error))
        return [found[number] for number in names]

    def _one_by_one(self, part: Part, note: _Note | None = None) -> Iterator[Done]:
        for number, item in enumerate(items_of(part), part.first):
            found, error = dict[int, Done](), ""
            if note is not None and note.deaths.get(str(number), 0) >= _DEADLY:
                error = f"{item.name}: {_DEADLY} workers died at it"
            else:
                if note is not None:
                    note.at(number)
                try:
                    found, failures = self._found([item], 1)
                    if failures:
                        self._refuse_vanished()
                        error = str(failures[0].error)
                except MaskkitError:
                    raise
                except Exception as fault:
                    error = f"{item.name}: the program failed ({type(fault).__name__}: {one_line(fault)})"
            yield found.get(number) or Done(number, item.name, None, [], error)

    def _found(self, items: Iterable[Item], batch: int) -> tuple[dict[int, Done], list[Failure]]:
        failures: list[Failure] = []
        found: dict[int, Done] = {}
        predictor, job = self._model().predictor, self.job
        for prediction in predictor.predict(
            items, batch=batch, workers=job.readers, score=job.score, failed=failures.append
        ):
            meta = prediction.meta
            number = int(meta.image_id)
            found[number] = Done(number, meta.path, meta.size, job.selection(prediction).to_coco())
        return found, failures

    def _model(self) -> Segmenter:
        """The model, loaded at the first part. Raises `MaskkitError` where this machine has another."""
        if self._segmenter is None:
            host = socket.gethostname()
            if RUN not in self.storage.names(""):
                raise DataError(
                    f"{self.job.out}: is another folder on {host}; give --out a folder that all machines see, or an "
                    "address"
                )
            if os.path.isdir(self.job.directory):
                os.chdir(self.job.directory)
            elif self.job.relative:
                raise DataError(
                    f"{self.job.directory}: is not on {host}; give addresses, or a folder that all machines see"
                )
            if (have := digest(find_weights(self.job.model))) != self.job.weights:
                raise DataError(
                    f"{self.job.model}: is another file on {host} (sha256 {have[:12]}, not "
                    f"{self.job.weights[:12]}); give all machines the same"
                )
            self._segmenter = self.job.load()
        return self._segmenter

    def _refuse_vanished(self) -> None:
        """Raise `DataError` if a folder of images has disappeared: then the images are not bad."""
        for folder in self.job.folders:
            if _is_gone(folder):
                raise DataError(f"{folder}: is not on {socket.gethostname()}, or not any more; restore it")

    def _made_with(self) -> tuple[str, str]:
        return self.job.model, maskkit.__version__


def _is_gone(folder: str) -> bool:
    """Whether a folder that had images is not there, or empty, as one is that is no longer mounted."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:  # its files may be readable
        return False
    except OSError:
        return True


@dataclass
class _Note:
    """How often a part was begun, and at which images workers have died; kept in a file that survives them."""

    storage: Storage
    name: str
    begun: int
    deaths: dict[str, int]
    """Workers that have died at each image."""

    @classmethod
    def begin(cls, storage: Storage, part: Part) -> _Note:
        """The note of a part that is begun once more."""
        name = f"{BEGUN}/{part.name}.json"
        try:
            before = json.loads(storage.read(name))
        except (DataError, ValueError):  # there is none, or it is half written
            before = {}
        note = cls(storage, name, int(before.get("begun", 0)) + 1, dict(before.get("deaths", {})))
        if before.get("at") is not None:
            note.deaths[before["at"]] = note.deaths.get(before["at"], 0) + 1
        note.at(None)
        return note

    def at(self, number: int | None) -> None:
        """Write down the image that is predicted next."""
        at = None if number is None else str(number)
        self.storage.write(self.name, json.dumps({"begun": self.begun, "deaths": self.deaths, "at": at}).encode())


def _answer(part: Part, rows: int, errors: list[str], stop: str) -> dict[str, Any]:
    return {
        "number": part.number,
        "images": part.images,
        "rows": rows,
        "failed": len(errors),
        "error": errors[0] if errors else "",
        "stop": stop,
    }
