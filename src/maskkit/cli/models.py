"""`maskkit models`: list the presets of the zoo."""

from __future__ import annotations

from typing import Any, Literal

from maskkit.cli.console import stdout


def models(
    task: Literal["instance", "detection", "proposals", "semantic", "panoptic"] | None = None,
    supervision: Literal["masks", "boxes", "tags", "label_map"] | None = None,
    small: bool = False,
    json: bool = False,
) -> int:
    """List the presets with task, supervision, the paper's number, our number, and published weights.

    Example: maskkit models --task instance --supervision boxes --small

    Args:
        task: Only presets of this task.
        supervision: Only presets that can train on these labels alone.
        small: Only presets that train on two processor cores.
        json: Print JSON instead of a table.
    """
    from rich.table import Column, Table

    rows = [
        row
        for row in _rows()
        if (task is None or row["task"] == task)
        and (supervision is None or supervision in row["supervision"])
        and (not small or row["small"])
    ]
    if json:
        stdout().print_json(data=rows)
        return 0
    table = Table(Column("preset", no_wrap=True), "task", "supervision", "paper", "ours", "published weights")
    for row in rows:
        numbers = (row[name] or "-" for name in ("paper", "ours", "weights"))
        table.add_row(row["preset"], row["task"], " or ".join(row["supervision"]), *numbers)
    stdout().print(table)
    return 0


def _rows() -> list[dict[str, Any]]:
    """The presets of the zoo, and the built-in model at the end."""
    from maskkit import zoo
    from maskkit.api import BUILT_IN, find_weights
    from maskkit.checkpoints.checkpoint import run_config
    from maskkit.checkpoints.header import read_header

    rows = []
    for preset in zoo.presets():
        model = zoo.model_class(preset.name)
        rows.append(
            {
                "preset": preset.name,
                "method": zoo.method(preset.name).title,
                "task": model.task_of(preset.model),
                "supervision": sorted(model.supervision_of(preset.model)),
                "small": preset.small,
                "paper": preset.paper,
                "ours": preset.ours,
                "weights": str(preset.weights) if preset.weights is not None else None,
            }
        )
    header = read_header(find_weights(BUILT_IN))
    config, info = run_config(header["config"]), header["info"]
    model = zoo.model_class(config.preset)
    built_in = {
        "preset": BUILT_IN,
        "method": zoo.method(config.preset).title,
        "task": model.task_of(config.model),
        "supervision": sorted(model.supervision_of(config.model)),
        "small": True,
        "paper": None,
        "ours": info.get("ours"),
        "weights": f"in the package ({info['licence']})" if "licence" in info else None,
    }
    return [*rows, built_in]
