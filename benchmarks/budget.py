"""Training for so many processor seconds: other work on the machine then favours nobody."""

import resource
from collections.abc import Callable

CALIBRATION = 6
"""Steps that measure the speed; the slowest, the first, is left out."""


def spent() -> float:
    """Processor seconds of this process and its finished children."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def train_within(budget: float, step: Callable[[int, int], None]) -> tuple[int, float]:
    """Call ``step(number, total)`` as often as ``budget`` processor seconds allow; gives steps and seconds spent.

    The first steps measure the speed, and ``total`` is fitted to the budget after them.
    """
    begin, marks = spent(), []
    total = None
    number = 0
    while total is None or number < total:
        step(number, total or 10_000)
        number += 1
        marks.append(spent())
        if number == CALIBRATION:
            per_step = (marks[-1] - marks[0]) / (CALIBRATION - 1)
            total = max(number + 1, int((budget - (marks[-1] - begin)) / per_step) + number)
        if marks[-1] - begin > budget:
            break
        if number % 20 == 0:
            print(f"step {number} of {total}, {marks[-1] - begin:.0f} of {budget:.0f} processor seconds", flush=True)
    return number, spent() - begin
