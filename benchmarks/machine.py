"""What a figure was measured on."""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path


def describe(threads: int | None = None) -> str:
    """Processor, threads, versions and date in one line."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = f"{len(models)} x {models[0]}" if models else name
    packages = ", ".join(f"{p} {version(p)}" for p in ("maskkit", "torch", "torchvision", "timm"))
    return (
        f"{name}; {threads or torch.get_num_threads()} threads; Python {platform.python_version()}, {packages}; "
        f"{datetime.date.today().isoformat()}"
    )
