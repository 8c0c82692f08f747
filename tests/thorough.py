"""How much of what is counted in thousands the slow tests do: a fifth, all of it with ``MASKKIT_THOROUGH=1``."""

import os

THOROUGH = os.environ.get("MASKKIT_THOROUGH", "0") == "1"


def of(count: int) -> int:
    """``count`` in a thorough run, else a fifth of it."""
    return count if THOROUGH else count // 5
