"""From a data set to batches: normalise, collate, and loaders whose batches depend only on (seed, step).

A sample does not depend on the process that makes it or on earlier samples, so a resumed training gets exactly the
batches of an uninterrupted one.
"""

import functools
import io
import logging
import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from maskkit.config import InputConfig, RunConfig
from maskkit.data.balance import RepeatedImages, repeated
from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.data.patches import Patches
from maskkit.data.transforms import Sample, apply, train_ops
from maskkit.errors import DataError, FileError, MaskkitError, explain
from maskkit.targets import Batch, DenseMasks, Target

_SMALL_SHARED_MEMORY = (
    "shared memory (/dev/shm) is too small for the batches: the loader processes send copies, which takes longer; give "
    "it more (docker run --shm-size 2g)"
)

_log = logging.getLogger(__name__)

Note = Callable[[str], None]
"""Takes a line for the user."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Steps(Protocol[T_co]):
    """Makes the batch of a step from the number of the step alone. Raises `DataError`."""

    def __getitem__(self, step: int, /) -> T_co:
        """The batch of one step."""
        ...


def normalise(image: Tensor, input: InputConfig) -> Float[Tensor, "3 h w"]:
    """``(image - mean) / std`` of RGB on 0..255, channel by channel."""
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (input.mean, input.std))
    return (image.float() - mean).div_(std)


def collate(samples: Sequence[Sample], input: InputConfig) -> Batch:
    """Samples with RGB on 0..255 as one normalised batch.

    Images of different sizes, and all images of the mode ``shorter``, are padded right and bottom to the largest size,
    rounded up to a multiple of ``input.multiple``, and so are masks and maps. ``sizes`` are the ``input_size`` of the
    samples' metas; everything outside them is zero, or the grey of ``input.padding``.
    """
    sizes = {(image.shape[1], image.shape[2]) for image, _, _ in samples}
    height, width = (max(side) for side in zip(*sizes, strict=True))
    if len(sizes) > 1 or input.resize == "shorter":
        height, width = (-(-side // input.multiple) * input.multiple for side in (height, width))
    around = normalise(torch.tensor(input.surround)[:, None, None], input)
    images = around.expand(len(samples), -1, height, width).clone()
    targets = []
    for i, (image, target, meta) in enumerate(samples):
        h, w = meta.input_size
        images[i, :, :h, :w] = normalise(image[:, :h, :w], input)
        targets.append(_padded(target, (height, width)))
    metas = [replace(meta, input_size=(height, width)) for _, _, meta in samples]
    inside = torch.tensor([meta.input_size for _, _, meta in samples])
    return Batch(images, inside, targets, metas, input.mean, input.std)


def train_loader(
    dataset: Dataset,
    config: RunConfig,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    note: Note = _log.warning,
) -> Generator[Batch, None, None]:
    """The batches from ``start_step`` to before ``stop_step``, of each the share of process ``rank`` of ``world``.

    The images are one endless stream with a new permutation in each epoch; step s takes the s-th ``train.batch``
    images of it. With ``train.repeat`` images of rare classes are several times in an epoch.

    Raises `DataError` for an image that cannot be read, for a data set without images and for copy-paste without masks,
    and `MaskkitError` when a batch has fewer images than there are processes.
    """
    if len(dataset) == 0:
        raise DataError("the training set has no image")
    if config.train.batch < world:
        raise MaskkitError(
            f"a batch of {config.train.batch} cannot be divided between {world} processes; set train.batch higher"
        )
    if config.augment.copy_paste > 0 and config.data.labels != "masks":
        raise DataError(f"copy-paste requires masks, not {config.data.labels}; set augment.copy_paste to 0")
    repeats = None
    if config.train.repeat:
        repeats, line = repeated(dataset, config.train.repeat, config.train.seed)
        note(line)
    steps = _TrainSteps(dataset, config, stop_step, rank, world, repeats)
    return batches(steps, range(start_step, stop_step), config.train.workers, note)


@dataclass(frozen=True)
class _TrainSteps:
    dataset: Dataset
    config: RunConfig
    total: int
    rank: int
    world: int
    repeats: RepeatedImages | None = None

    def __getitem__(self, step: int) -> Batch:
        config, n = self.config, len(self.dataset if self.repeats is None else self.repeats)
        places = range(step * config.train.batch, (step + 1) * config.train.batch)[self.rank :: self.world]
        batch = collate([self._sample(*divmod(place, n)) for place in places], config.input)
        return replace(batch, progress=(step + 1) / self.total)

    def _sample(self, epoch: int, place: int) -> Sample:
        config = self.config
        if self.repeats is None:
            index, again = int(permutation(len(self.dataset), config.train.seed, epoch)[place]), 0
        else:
            index, again = map(int, self.repeats.order(epoch)[place])
        rng = np.random.default_rng([config.train.seed, epoch, index, again][: 4 if again else 3])
        ops = train_ops(config.augment, config.input, self._partner)
        return apply(ops, self.dataset.load(index, config.data.labels), rng)

    def _partner(self, rng: np.random.Generator) -> Sample:
        return self.dataset.load(int(rng.integers(len(self.dataset))), self.config.data.labels)


@functools.lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``n`` images in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def _padded(target: Target, size: tuple[int, int]) -> Target:
    """The target with its maps and masks padded to ``size``, the masks dense."""
    masks, semantic, saliency = target.masks, target.semantic, target.saliency
    if masks is not None:
        masks = DenseMasks(Patches.of(masks).window(0, 0, size).dense())
    if semantic is not None:
        padded = semantic.new_full(size, IGNORE)
        padded[: semantic.shape[0], : semantic.shape[1]] = semantic
        semantic = padded
    if saliency is not None:
        saliency = F.pad(saliency, [0, size[1] - saliency.shape[1], 0, size[0] - saliency.shape[0]])
    return replace(target, masks=masks, semantic=semantic, saliency=saliency)


@dataclass(frozen=True)
class _Copied:
    """A batch as bytes, because there is not enough shared memory for it."""

    content: bytes


@dataclass(frozen=True)
class _Guarded:
    """Returns a `DataError` instead of raising it: a worker process would hide it in its own traceback."""

    steps: Steps[object]

    def __getitem__(self, step: int) -> object:
        try:
            return _shared(self.steps[step])
        except (DataError, FileError) as error:
            return error
        except OSError as error:
            return FileError(explain(error))


def _shared(batch: object) -> object:
    """The batch in shared memory, where a worker process made it, or as bytes where that has no room.

    torch would move the tensors in a thread, whose error nobody sees: the training would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        _Sharer(io.BytesIO()).dump(batch)
    except RuntimeError:  # no space there, or too many files are open
        return _Copied(pickle.dumps(batch))
    return batch


class _Sharer(pickle.Pickler):
    """Moves all tensors of what it is given to shared memory, where they stay when a process sends them."""

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        obj.share_memory_()
        return 0


def batches(steps: Steps[T], order: range, workers: int, note: Note = _log.warning) -> Generator[T, None, None]:
    """The batches of ``order``, made by ``workers`` processes of one thread each, or in this process for 0.

    The processes hand them over in shared memory. Where that is too small for a batch, they send copies, which takes
    longer; ``note`` gets one line about it.
    """
    loader = DataLoader(
        _Guarded(steps),  # type: ignore[arg-type]
        batch_size=None,
        sampler=order,
        num_workers=min(workers, len(order)),
        worker_init_fn=_leave_signals,
    )
    noted = False
    with _started(loader) as items:
        for item in items:
            if isinstance(item, _Copied):
                if not noted:
                    note(_SMALL_SHARED_MEMORY)
                noted, item = True, pickle.loads(item.content)
            if isinstance(item, MaskkitError):
                raise item
            yield item


@contextmanager
def _started(loader: DataLoader[object]) -> Iterator[Iterator[Any]]:
    """The loader's iterator; its processes end with the block, at once.

    They never see Ctrl-C, which goes to all processes of a terminal.
    """
    others = set(active_children())
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else ()
    try:
        items = iter(loader)  # the processes keep the mask
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield items
    finally:
        for process in set(active_children()) - others:
            process.terminate()


def _leave_signals(worker: int) -> None:
    """The process that trains decides when to end: its loader processes end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
