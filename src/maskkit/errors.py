"""The two errors a user can cause; the command line turns them into one clear line and an exit code."""


class MaskkitError(Exception):
    """Something the user can mend: the message names the file, the record and the fix."""


class DataError(MaskkitError):
    """An image, an annotation file or a checkpoint that cannot be used as it is."""
