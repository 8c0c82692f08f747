"""The two errors that a user can cause; the command line prints them as one line and exits with code 1."""


class MaskkitError(Exception):
    """Something that the user can correct: the message names the file, the record and the fix."""


class DataError(MaskkitError):
    """An image, an annotation file or a checkpoint that cannot be used as it is."""
