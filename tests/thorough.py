"""How much the slow tests do: all of it with ``MASKKIT_THOROUGH=1``.

Else a fifth of what is counted in thousands, one golden of each source by the paths of an exported graph, no variants
of methods, and OpenVINO for three methods.
"""

import os

THOROUGH = os.environ.get("MASKKIT_THOROUGH", "0") == "1"


def of(count: int) -> int:
    """``count`` in a thorough run, else a fifth of it."""
    return count if THOROUGH else count // 5
