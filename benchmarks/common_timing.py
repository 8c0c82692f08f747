"""What all benchmarks share: a description of the machine, and timing in turns. It does not import torch."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "neon", "sve")
"""Instructions of processors that decide how fast networks run."""

Times = list[tuple[float, float]]
"""Processor and wall-clock seconds of each round."""


def machine(threads: int, packages: tuple[str, ...] = ("maskkit", "torch", "torchvision", "timm")) -> dict[str, Any]:
    """The facts that figures depend on, as JSON types; a package that is not installed is left out."""
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        names = [value.strip() for key, value in lines if key.strip() == "model name"]
        name = f"{len(names)} x {names[0]}" if names else name
        flags = {f for key, value in lines if key.strip() in ("flags", "Features") for f in value.split()}
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "flags": [flag for flag in FLAGS if flag in flags],
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def in_words(facts: Mapping[str, Any]) -> str:
    """The facts of `machine` in one line."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    flags = f" ({' '.join(facts['flags'])})" if facts["flags"] else ""
    busy = f", load {facts['load']}" if facts["load"] is not None else ""
    return (
        f"{facts['processor']}{flags}; {facts['threads']} threads; Python {facts['python']}, {packages}; "
        f"{facts['date']}{busy}"
    )


def describe(threads: int | None = None) -> str:
    """Processor, threads, versions, date and load of the machine in one line."""
    return in_words(machine(threads or os.cpu_count() or 1))


def seconds(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of ``call``, and its processor and wall-clock time in seconds."""
    begin, clock = time.process_time(), time.perf_counter()
    result = call()
    return result, time.process_time() - begin, time.perf_counter() - clock


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], dict[str, Times]]:
    """The last results of calls made in turn, and the times of each of ``rounds``; one round before is not counted."""
    times: dict[str, Times] = {name: [] for name in calls}
    results = {}
    for number in range(rounds + 1):
        for name, call in calls.items():
            results[name], processor, clock = seconds(call)
            if number:
                times[name].append((processor, clock))
    return results, times


def in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """The results of `take_turns`, and the medians of its times."""
    results, times = take_turns(calls, rounds)
    return results, {
        name: (statistics.median(c for c, _ in t), statistics.median(w for _, w in t)) for name, t in times.items()
    }


def compare(title: str, calls: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print the milliseconds of two calls with the same result, their largest difference, and the ratio."""
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
