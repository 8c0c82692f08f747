"""Calls side by side: they take turns, round after round, so that whatever else the machine does meets all alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def seconds(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What ``call`` gives, and its processor and clock time."""
    begin, clock = time.process_time(), time.perf_counter()
    result = call()
    return result, time.process_time() - begin, time.perf_counter() - clock


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """Results, and median processor and clock time, of calls that are made in turn; the first round does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    results = {}
    for number in range(rounds + 1):
        for name, call in calls.items():
            results[name], *took = seconds(call)
            if number:
                times[name].append((took[0], took[1]))
    return results, {
        name: (statistics.median(c for c, _ in t), statistics.median(w for _, w in t)) for name, t in times.items()
    }


def compare(title: str, calls: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print the milliseconds of two calls that give the same tensor, how far apart these are, and the ratio."""
    results, times = in_turn(calls, rounds)
    (slow, fast), (one, other) = times.values(), results.values()
    took = " and ".join(f"{name} {1000 * clock:.0f} ms" for name, (_, clock) in times.items())
    print(f"{title}: {took}, {(one - other).abs().max().item():.0e} apart")
    print(f"  the second is {ratios(slow, fast)}")


def ratios(slow: tuple[float, float], fast: tuple[float, float]) -> str:
    """How many times as fast the second is."""
    return "times as fast: {:.2f} by processor time, {:.2f} by the clock".format(
        *(a / b for a, b in zip(slow, fast, strict=True))
    )
