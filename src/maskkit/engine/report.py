"""The part of a report about the training: curves, samples over time, initial weights, duration, configuration."""

import json
import math
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from markupsafe import Markup
from matplotlib.figure import Figure

import maskkit
from maskkit.config import RunConfig
from maskkit.engine.log import clock, read_rows
from maskkit.engine.run import Run
from maskkit.eval import page

EVALUATIONS = 6
"""Largest number of evaluations whose samples are shown."""
SIDE = 240
"""Longer side of a sample, in pixels."""

_COLOURS = ("#1668dc", "#d4380d", "#2e9e5b", "#7a7f87", "#8a4fbe", "#e08a00", "#00838f")


def training_section(run: Run, config: RunConfig, images: int) -> Markup:
    """The section about the run in its folder, as HTML; ``images`` is the number of training images."""
    settings = json.loads((run.out / "config.json").read_bytes())
    rows = read_rows(run.out / "metrics.jsonl")
    speeds = [row["images/s"] for row in rows if _shown(row.get("images/s"))]
    facts = [
        ("initial weights", _start(settings.pop("start", None) or {})),
        ("steps", f"{run.done} of {config.train.batch} images, {run.done / run.epoch:.1f} epochs of {images} images"),
        ("duration", clock(run.log.seconds)),
        ("speed", f"{median(speeds):.1f} images/s while training" if speeds else "not recorded"),
        ("machine", machine(run.device)),
        ("versions", f"maskkit {maskkit.__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    return page.fragment(
        "training.html",
        facts=facts,
        drawing=curves(rows),
        samples=samples(run.out / "samples"),
        commands=commands(config, run.out),
        settings=json.dumps(settings, indent=2),
    )


def samples(folder: Path) -> list[tuple[int, list[str]]]:
    """Some evaluations, with the first and the last: the step, and the drawn images as data URLs."""
    steps = sorted(drawn for drawn in folder.glob("[0-9]" * 7) if drawn.is_dir())
    count = min(len(steps), EVALUATIONS)
    chosen = [steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)]
    return [(int(d.name), [page.jpeg(page.reduced(p, SIDE)[0]) for p in sorted(d.glob("*.jpg"))]) for d in chosen]


def commands(config: RunConfig, out: Path) -> list[tuple[str, str]]:
    """Next steps, each with its command."""
    best, data = shlex.quote(str(out / "best.safetensors")), shlex.quote(config.data.train)
    another = shlex.quote(f"{out}-2")
    return [
        ("Predict with the best weights", f"maskkit predict PHOTOS --model {best} --out found"),
        ("Evaluate them", f"maskkit eval --model {best} --data {shlex.quote(config.data.val or config.data.train)}"),
        (
            "Train on from them",
            f"maskkit train --model {config.preset} --data {data} --weights {best} --out {another}",
        ),
        ("Continue a run that was stopped", "the command of the run, and --resume"),
        ("Make it longer", "the command of the run, with more --train.epochs, and --resume"),
    ]


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Curves of the losses and metrics by step, as SVG; empty if there are none."""
    losses = sorted({n for row in rows for n in row if n == "loss" or n.startswith("loss/")})
    metrics = [n for n in dict.fromkeys(n for row in rows for n in row) if n.startswith("val/")][:7]
    groups = [("loss", losses), ("metric", metrics)]
    groups = [group for group in groups if group[1]]
    if not groups:
        return ""
    figure = Figure(figsize=(5 * len(groups), 3.4), layout="constrained")
    for i, (unit, names) in enumerate(groups, 1):
        axes = figure.add_subplot(1, len(groups), i, xlabel="step", ylabel=unit)
        for name, colour in zip(names, _COLOURS, strict=False):
            points = [(row["step"], row[name]) for row in rows if _shown(row.get(name))]
            if not any(value for _, value in points):
                continue  # a term that this model does not have
            marker = "." if len(points) < 30 else None
            label = name.partition("/")[2] or "sum"
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1.2, label=label)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        axes.set_ylim(bottom=0)
    return page.svg(figure)


def machine(device: torch.device) -> str:
    """The kind of processor or accelerator, without the name of the machine."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    cores = os.cpu_count() or 1
    return f"{device}, {platform.machine()}, {cores} cores, {torch.get_num_threads()} threads"


def _start(facts: Mapping[str, Any]) -> str:
    if not facts:
        return "not recorded"
    if facts["source"] == "random":
        return "random values"
    return f"{facts['tensors']} of {facts['of']} tensors from {facts['source']} (sha256 {facts['sha256'][:16]}...)"


def _shown(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
