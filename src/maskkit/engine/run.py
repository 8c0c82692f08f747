"""What every training needs around its loop: folder, processes, seeds, precision, the optimizer step, the log.

The loops are in `maskkit.engine.train` and `maskkit.engine.pretrain`. Each step is a pure function of configuration,
weights and step number: its data, its random choices and its learning rate follow from the seed and the number. So a
run that was killed and resumed ends with the same bits as one that was not.
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn

from maskkit.config import TrainConfig
from maskkit.engine.log import RunLog
from maskkit.engine.optim import learning_rate, precision_notes, set_rate
from maskkit.errors import MaskkitError
from maskkit.files import remove_leftovers, replacing, write_json

T = TypeVar("T")


@dataclass
class Run:
    """A training in its folder, made by `open_run`. Inside ``with run:`` its log is open."""

    out: Path
    settings: TrainConfig
    resumed: bool
    """Whether the folder holds a checkpoint to continue from."""
    accelerator: Accelerator
    flags: str = "--train."
    """How the command line spells the settings."""
    total: int = 0
    """Optimizer steps of the whole run."""
    start: int = 0
    """Steps that were done before this process began."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user, printed when the log opens."""
    log: RunLog = field(init=False)

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
        self.log = RunLog(self.out, self.start, self.total, self.settings.tensorboard, self.main).__enter__()
        for note in self.notes:
            self.log.note(note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.log.__exit__(kind, error, trace)
        if error is None:
            self.accelerator.wait_for_everyone()

    def first(self) -> AbstractContextManager[None]:
        """What the first process does inside, before the others do the same."""
        return self.accelerator.main_process_first()

    def autocast(self) -> AbstractContextManager:
        """The precision of the forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def begin_step(self, step: int, optimizer: AcceleratedOptimizer) -> float:
        """Seed the random choices of a step and set its learning rate, which is returned."""
        torch.manual_seed(mix(self.settings.seed, step, self.rank))
        rate = learning_rate(step, self.total, self.settings)
        set_rate(optimizer, rate)
        return rate

    def read_losses(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Each loss, averaged over the processes. This waits for the device, the only time in a step."""
        mean: Any = self.accelerator.reduce(torch.stack([loss.detach() for loss in losses.values()]), "mean")
        return dict(zip(losses, mean.tolist(), strict=True))

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Gradients of the sum of the losses."""
        self.accelerator.backward(torch.stack(list(losses.values())).sum())

    def update(self, model: nn.Module, optimizer: AcceleratedOptimizer) -> None:
        """Clip the gradients where the settings say so, change the weights, clear the gradients."""
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(model.parameters(), self.settings.clip)
        optimizer.step()
        optimizer.zero_grad()

    def save_due(self, done: int) -> bool:
        """Whether the state is saved after ``done`` steps."""
        return done % self.settings.save_every == 0 or done == self.total


def open_run(out: Path, settings: TrainConfig, resume: bool, flags: str = "--train.") -> Run:
    """A run in the folder ``out``: a new one, or with ``resume`` the one whose checkpoint is there.

    Raises `MaskkitError` when the folder holds a run that is not to be continued.
    """
    accelerator = Accelerator(mixed_precision="no")  # autocast is visible in the loop
    run = Run(out, settings, resume and (out / "last.safetensors").exists(), accelerator, flags)
    if not resume and (run.last.exists() or (out / "config.json").exists()):
        raise MaskkitError(f"{out} already holds a run; continue it with --resume, or choose another folder with --out")
    accelerator.wait_for_everyone()  # no process writes before all have looked
    if resume and not run.resumed:
        run.notes.append(f"{out} holds no checkpoint to resume from: the run starts at step 1")
    return run


def plan_steps(run: Run, images: int) -> None:
    """Set the number of steps for a training set of so many images.

    Raises `MaskkitError` for a batch that the processes cannot share evenly.
    """
    settings = run.settings
    if min(settings.batch, settings.save_every) < 1:
        raise MaskkitError(f"{run.flags}batch and {run.flags}save-every must be at least 1")
    if settings.batch % run.world:
        raise MaskkitError(
            f"{run.flags}batch {settings.batch} cannot be shared by {run.world} processes; give a multiple"
        )
    run.total = settings.steps or max(1, math.ceil(settings.epochs * images / settings.batch))
    run.notes += precision_notes(settings.precision, run.device)


def begin(run: Run, start: int, config: dict[str, Any]) -> None:
    """Write ``config.json`` and note after which step the run continues."""
    run.start = start
    if run.resumed:
        run.notes.append(f"continuing after step {start} of {run.total}")
    if run.main:
        remove_leftovers(run.out)
        write_json(run.out / "config.json", config)


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
) -> MaskkitError:
    """Write the batch of step ``step`` (0 is the first), whose loss is not finite; returns the error to raise."""
    path = run.out / ("bad_batch.safetensors" if run.rank == 0 else f"bad_batch_{run.rank}.safetensors")
    texts = {"step": step + 1, "loss": {name: str(value) for name, value in losses.items()}, **about}
    with replacing(path) as temporary:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, temporary, {"batch": json.dumps(texts)})
    bad = ", ".join(f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value))
    images = f" (images {about['image_ids']}; look at them with maskkit check)" if "image_ids" in about else ""
    return MaskkitError(
        f"step {step + 1}: the loss is not finite ({bad}); its batch is kept in {path}{images}; lower {run.flags}lr or "
        f"set {run.flags}clip 10"
    )


def mix(seed: int, step: int, rank: int) -> int:
    """One seed for the random choices of a step in a process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
