"""The command ``maskkit``, also as ``python -m maskkit``, which is what ``torchrun -m maskkit train ...`` starts."""

import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType


def main() -> int:
    """Run the command line. Ctrl-C ends it with one line and code 130, while modules are loaded too."""
    mine = threading.current_thread() is threading.main_thread()
    if mine and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    from maskkit.cli import main

    code = main()
    if code > 128:  # a signal: the end of an interpreter with all modules loaded can take seconds
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, except while a module is loaded: that may turn it into another error."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"maskkit: interrupted\n")
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
