"""The errors that a user can cause; the command line prints them as one line and exits with code 1."""

import errno
import os
import signal


class MaskkitError(Exception):
    """Something that the user can correct: the message names the file, the record and the fix."""


class DataError(MaskkitError):
    """An image, an annotation file or a checkpoint that cannot be used as it is."""


class FileError(MaskkitError, OSError):
    """A file that cannot be read or written: the message names it and the fix."""


class NotFinite(MaskkitError):
    """A training whose loss is not a number."""


class Interrupted(KeyboardInterrupt):
    """A training that stopped because of a signal; the message says what was saved and how to go on."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number
        """The signal."""


_FIXES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some space, or write to another disk",
    errno.EFBIG: "the limit for files is lower (ulimit -f); raise it, or write to another disk",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "write to another folder",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a file is where a folder should be; check the path",
    errno.EISDIR: "a folder is where a file should be; check the path",
    errno.EEXIST: "something else has this name; remove it or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open; close other programs",
    errno.EIO: "the disk or the network reports an error; check it and try again",
    errno.EPIPE: "the program that reads the output has ended",
}


def explain(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """One line about an error of the system: the file (``path`` where the error has none), the reason and the fix."""
    if isinstance(error, MaskkitError):
        return str(error)
    name = error.filename if error.filename is not None else path
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    reason = error.strerror or str(error) or type(error).__name__
    fix = _FIXES.get(error.errno or 0, "check the disk and the path")
    return f"{name}: {reason}; {fix}" if name is not None else f"{reason}; {fix}"
