"""What every training needs around its loop: folder, processes, seeds, precision, the optimizer step, the log.

The loops are in `maskkit.engine.train` and `maskkit.engine.pretrain`. Each step is a pure function of configuration,
weights and step number: its data, its random choices and its learning rate follow from the seed and the number. So a
run that was killed and resumed ends with the same bits as one that was not.
"""

import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from maskkit.checkpoints.foreign import write_tensors
from maskkit.config import TrainConfig
from maskkit.engine.failures import failure
from maskkit.engine.interrupts import Interrupts
from maskkit.engine.lock import Lock
from maskkit.engine.log import RunLog, truncate
from maskkit.engine.optim import learning_rate, set_rate
from maskkit.engine.peers import Peers, missing
from maskkit.engine.trackers import require
from maskkit.errors import Interrupted, MaskkitError, NotFinite, explain
from maskkit.files import remove_leftovers, write_json
from maskkit.infer.torch_runtime import find_device

T = TypeVar("T")

_SAVE_SECONDS = 60.0
"""Time between saves of the state, where ``save_every`` steps take longer."""
_SAVE_SHARE = 0.05
"""Largest share of the time that is spent on saves because of `_SAVE_SECONDS`."""


@dataclass
class Run:
    """A training in its folder, made by `open_run`.

    Inside ``with run:`` no other process writes to the folder, and a signal ends the training after the current step,
    with its state saved. From `begin` on its log is open.
    """

    out: Path
    settings: TrainConfig
    resume: bool
    """Whether a run in the folder is to be continued."""
    accelerator: Accelerator
    flags: str = "--train."
    """Prefix of the settings on the command line."""
    total: int = 0
    """Optimizer steps of the whole run; with ``train.minutes`` their number is known after some steps were timed."""
    epoch: float = 0.0
    """Number of steps per pass over the training images."""
    start: int = 0
    """Steps that earlier processes have done."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user, printed when the log opens."""
    keep: Callable[[], None] | None = None
    """Writes the state to resume from; called in the first process alone."""
    opened: float = field(default_factory=time.monotonic)
    """Time at which the run was opened, in seconds of the monotonic clock."""
    begun: bool = False
    """Whether `begin` was called; from then on the state can be saved."""
    done: int = 0
    """Number of complete steps."""
    resumed: bool = field(init=False)
    """Whether the folder holds a checkpoint to continue from."""
    log: RunLog = field(init=False)
    interrupts: Interrupts = field(init=False)
    lock: Lock = field(init=False)
    peers: Peers = field(init=False)
    exits: ExitStack = field(default_factory=ExitStack)
    """What is closed when ``with run`` is left, the last first."""
    _saved: int = -1
    _saved_at: float = 0.0
    _save_took: float = 0.0

    def __post_init__(self) -> None:
        self.resumed = self.resume and self.last.exists()
        self.interrupts = Interrupts(alone=self.world == 1)
        self.lock = Lock(self.out)
        self.peers = Peers(self.rank, self.world)

    @property
    def last(self) -> Path:
        """The file with the state of the run."""
        return self.out / "last.safetensors"

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes share each batch."""
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """Where the model is trained."""
        return self.accelerator.device

    @property
    def layout(self) -> torch.memory_format:
        """Memory order of images and weights."""
        return torch.channels_last if self.settings.channels_last else torch.contiguous_format

    def __enter__(self) -> "Run":
        with ExitStack() as exits:
            exits.enter_context(self.interrupts)
            if self.main:
                exits.callback(self.lock.free)
            self.resumed = once(self, self._claim)
            try:
                self.peers.meet(lambda work: once(self, work))
            except OSError as error:
                self.notes.append(f"the processes cannot watch one another ({explain(error)}); the training goes on")
            self.exits = exits.pop_all()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if isinstance(error, KeyboardInterrupt):
                raise self._interrupted(error) from None
            if isinstance(error, RuntimeError) and (rank := self.peers.lost()) is not None:
                raise MaskkitError(missing(rank, self.world)) from error
            if error is not None and (known := failure(error, self.flags, self._hint())) is not None:
                raise known from error
        finally:
            self.exits.close()
            if error is None:
                self.accelerator.wait_for_everyone()
            self.peers.close(well=error is None or isinstance(error, KeyboardInterrupt))

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process runs the body; the others wait until it has ended, even with an error, and then run it."""
        if not self.main:
            self.accelerator.wait_for_everyone()
        try:
            yield
        finally:
            if self.main:
                self.accelerator.wait_for_everyone()

    def _claim(self) -> bool:
        """Take the folder; whether it holds a checkpoint to continue from."""
        self.lock.take()
        refuse_other_run(self.out, self.resume)
        return self.resume and self.last.exists()

    def _hint(self) -> str:
        """How to continue after a failure."""
        return f"then go on after step {self._saved} with --resume" if self._saved > 0 else ""

    def _interrupted(self, error: KeyboardInterrupt) -> Interrupted:
        """Save the state, unless a step was interrupted; returns the error to raise."""
        number = getattr(error, "number", signal.SIGINT)
        problem = ""
        try:
            if self.begun and not self.interrupts.within and self.done != self._saved:
                self.save()
        except OSError as failed:
            problem = f"; the state could not be saved: {explain(failed, self.last)}"
        except KeyboardInterrupt:
            pass  # a second signal: the state is that of the save before
        if self._saved <= 0:
            return Interrupted(f"interrupted before the first step{problem}", number)
        return Interrupted(
            f"interrupted; {self.last} holds step {self._saved} of {self.total}{problem}; go on with the same command "
            "and --resume",
            number,
        )

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def begin_step(self, step: int, optimizer: AcceleratedOptimizer) -> float:
        """Seed the random choices of a step and set its learning rate, which is returned; signals wait for its end."""
        self.interrupts.begin_step()
        torch.manual_seed(mix(self.settings.seed, step, self.rank))
        rate = learning_rate(step, self.total, self.settings)
        set_rate(optimizer, rate)
        return rate

    def read_losses(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Each loss, averaged over the processes. The only call in a step that waits for the device."""
        values = torch.stack([loss.detach() for loss in losses.values()])
        if self.world > 1:  # all processes have to stop after the same step
            values = torch.cat([values, values.new_full((1,), float(self.interrupts.pending))])
        mean: Any = self.accelerator.reduce(values, "mean")
        found = mean.tolist()
        if self.world > 1:
            self.interrupts.agree(found.pop() > 0)
        return dict(zip(losses, found, strict=True))

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Gradients of the sum of the losses."""
        self.accelerator.backward(torch.stack(list(losses.values())).sum())

    def update(self, model: nn.Module, optimizer: AcceleratedOptimizer) -> None:
        """Clip the gradients where the settings say so, change the weights, clear the gradients."""
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(model.parameters(), self.settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    def end_step(self, done: int) -> None:
        """Note that ``done`` steps are complete. Raises `KeyboardInterrupt` after a signal; ``with run`` then saves."""
        self.done = done
        self.interrupts.end_step()

    def save_due(self, done: int) -> bool:
        """Whether the state is saved after ``done`` steps: every ``save_every`` steps, and about once a minute."""
        wait = max(_SAVE_SECONDS, self._save_took / _SAVE_SHARE)
        return done % self.settings.save_every == 0 or time.monotonic() - self._saved_at > wait

    def save(self) -> None:
        """Write the state to resume from."""
        assert self.keep is not None
        began = time.monotonic()
        if self.main:
            self.keep()
        self._saved, self._saved_at = self.done, time.monotonic()
        self._save_took = self._saved_at - began


def open_run(out: Path, settings: TrainConfig, resume: bool, flags: str = "--train.", device: str | None = None) -> Run:
    """A run in the folder ``out``: a new one, or with ``resume`` the one whose checkpoint is there.

    ``device`` is ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; None uses an accelerator where there is one. Raises
    `MaskkitError` when the folder holds a run that is not to be continued, and for a device that is not there.
    """
    require(settings.log)
    accelerator = open_accelerator(device)
    run = Run(out, settings, resume, accelerator, flags)
    run.lock.check()
    refuse_other_run(out, resume)
    accelerator.wait_for_everyone()  # no process writes before all have looked
    if resume and not run.resumed:
        run.notes.append(f"{out} holds no checkpoint to resume from: the run starts at step 1")
    return run


def open_accelerator(device: str | None = None) -> Accelerator:
    """The processes of a training, which compute on ``device``. Raises `MaskkitError` where it is not there."""
    chosen = None if device is None or device == "auto" else find_device(device)
    accelerator = Accelerator(mixed_precision="no")  # autocast is visible in the loop
    if chosen is not None and accelerator.num_processes > 1:
        raise MaskkitError(
            "--device is for a training in one process; several share the accelerators of the machine, or its "
            "processors where ACCELERATE_USE_CPU=true is set"
        )
    state: Any = accelerator.state  # one for all runs of a process
    state.device = chosen or PartialState().device
    if chosen is not None and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return accelerator


def refuse_other_run(out: Path, resume: bool) -> None:
    """Raise `MaskkitError` for a folder with a run that is not to be continued, or that cannot be."""
    there = {name for name in ("last.safetensors", "config.json", "best.safetensors") if (out / name).exists()}
    if there and not resume:
        raise MaskkitError(f"{out} already holds a run; continue it with --resume, or choose another folder with --out")
    if "best.safetensors" in there and "last.safetensors" not in there:
        raise MaskkitError(
            f"{out}: holds best.safetensors, but no last.safetensors to resume from; choose another folder with --out, "
            "so that these weights are not overwritten"
        )


def begin(run: Run, start: int, config: dict[str, Any], evaluated: int | None = None) -> None:
    """Write ``config.json``, open the log and note after which step the run continues.

    Lines of the log about steps after ``start`` are removed, and about evaluations after the step ``evaluated``.
    """
    run.start = run.done = start
    if run.resumed:
        run._saved, run._saved_at = start, time.monotonic()
        run.notes.append(f"continuing after step {start} of {run.total}")
    if run.main:
        for folder in (run.out, *(run.out / "samples").glob("*/")):
            remove_leftovers(folder)
        write_json(run.out / "config.json", config)
        truncate(run.out / "metrics.jsonl", start, evaluated)
        remove_samples(run.out / "samples", start if evaluated is None else evaluated)
    log = RunLog(run.out, start, run.total, run.settings.log, run.main, run.epoch, config)
    run.log = run.exits.enter_context(log)
    run.begun = True
    for note in run.notes:
        run.log.note(note)


def remove_samples(folder: Path, step: int) -> None:
    """Remove the samples of evaluations after ``step``, which an earlier run left; other files are not touched."""
    for drawn in folder.glob("[0-9]" * 7):
        if int(drawn.name) > step:
            shutil.rmtree(drawn)


def once(run: Run, work: Callable[[], T]) -> T:
    """The result of ``work``, done in the first process, in all of them; its `MaskkitError` is raised in all."""
    outcome: list[Any] = [None]
    if run.main:
        try:
            outcome = [work()]
        except MaskkitError as error:
            outcome = [error]
    broadcast_object_list(outcome)
    if isinstance(outcome[0], MaskkitError):
        raise outcome[0]
    return outcome[0]


def finite(losses: Mapping[str, float]) -> bool:
    """Whether every loss is a number."""
    return all(map(math.isfinite, losses.values()))


def keep_bad_batch(
    run: Run, losses: Mapping[str, float], step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> NotFinite:
    """Write the batch of step ``step`` (0 is the first) whose loss is not finite; returns the error to raise."""
    path = run.out / ("bad_batch.safetensors" if run.rank == 0 else f"bad_batch_{run.rank}.safetensors")
    texts = {"step": step + 1, "loss": {name: str(value) for name, value in losses.items()}, **about}
    write_tensors(path, tensors, {"batch": json.dumps(texts)})
    bad = ", ".join(f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value))
    images = f" (images {about['image_ids']}; look at them with maskkit check)" if "image_ids" in about else ""
    return NotFinite(
        f"step {step + 1}: the loss is not finite ({bad}); its batch is kept in {path}{images}; lower {run.flags}lr or "
        f"set {run.flags}clip 10"
    )


def mix(seed: int, step: int, rank: int) -> int:
    """One seed for the random choices of a step in a process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
