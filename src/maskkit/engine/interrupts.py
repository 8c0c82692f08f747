"""SIGINT (Ctrl-C) and SIGTERM during a training: the current step ends first, then the state can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Ctrl-C, the end of a job or a container, a closed terminal


class Stopped(KeyboardInterrupt):
    """A signal asked a training to end; its ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Interrupts:
    """Turns signals into `Stopped`, as a context manager: immediately, or at the end of the current step.

    A second signal interrupts the step; then the last saved state counts. If several processes share the steps
    (``alone`` False), they stop after the same step, once they have told each other (`agree`). Only the main thread can
    handle signals; in other threads nothing changes.
    """

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.within = False
        """Whether a step is under way."""
        self.agreed = False
        """Whether the processes have told one another of a signal."""
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def pending(self) -> bool:
        """Whether a signal waits for the end of the step."""
        return self._number is not None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as in the background of a shell
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def begin_step(self) -> None:
        """From now on signals are deferred."""
        self.within = True

    def end_step(self) -> None:
        """The step is complete. Raises `Stopped` if a signal was deferred."""
        self.within = False
        if self.pending and (self.alone or self.agreed):
            self._stop()

    def agree(self, any_of_them: bool) -> None:
        """Several processes: whether any of them has a signal, which ends all of them after this step."""
        self.agreed = any_of_them
        if any_of_them and self._number is None:
            self._number = signal.SIGTERM

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.pending
        self._number = number
        if again or (self.alone and not self.within):
            self._stop()

    def _stop(self) -> None:
        assert self._number is not None
        raise Stopped(self._number)
