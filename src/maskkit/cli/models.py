"""`maskkit models`: list the presets of the zoo."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from tyro.conf import arg

from maskkit.cli.console import stdout
from maskkit.cli.options import Fetch


def models(
    task: Literal["instance", "detection", "proposals", "semantic", "panoptic"] | None = None,
    supervision: Literal["masks", "boxes", "tags", "label_map"] | None = None,
    small: bool = False,
    weights: bool = False,
    json: bool = False,
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """List the presets with task, supervision, the paper's number, our number, and published weights.

    Example: maskkit models --task instance --supervision boxes --small

    Example: maskkit models --weights

    Args:
        task: Only presets of this task.
        supervision: Only presets that can train on these labels alone.
        small: Only presets that train on two processor cores.
        weights: List published weights, with licence, size of the download, and whether they were downloaded.
        json: Print JSON instead of a table.
        fetch: Downloads.
    """
    fetch.apply()
    from rich.table import Column, Table

    rows = [
        row
        for row in (_weights() if weights else _rows())
        if (task is None or row["task"] == task)
        and (supervision is None or supervision in row["supervision"])
        and (not small or row["small"])
    ]
    if json:
        stdout().print_json(data=rows)
        return 0
    if weights:
        table = Table(Column("preset", no_wrap=True), "task", "result", "source", "licence", "download", "here")
        for row in rows:
            size = f"{row['bytes'] / 1e6:.0f} MB" if row["bytes"] else "yes" if row["fetched"] else "by hand"
            here = "yes" if row["cached"] else "-"
            table.add_row(row["preset"], row["task"], row["paper"] or "-", row["source"], row["licence"], size, here)
        stdout().print(table)
        return 0
    table = Table(Column("preset", no_wrap=True), "task", "supervision", "paper", "ours", "published weights")
    for row in rows:
        numbers = (row[name] or "-" for name in ("paper", "ours", "weights"))
        table.add_row(row["preset"], row["task"], " or ".join(row["supervision"]), *numbers)
    stdout().print(table)
    return 0


def _weights() -> list[dict[str, Any]]:
    """The presets with published weights."""
    from maskkit import zoo
    from maskkit.checkpoints import hub

    rows: list[dict[str, Any]] = []
    for preset in zoo.presets():
        if preset.weights is None:
            continue
        model = zoo.model_class(preset.name)
        found = preset.weights.fetched
        rows.append(
            {
                "preset": preset.name,
                "task": model.task_of(preset.model),
                "supervision": sorted(model.supervision_of(preset.model)),
                "small": preset.small,
                "paper": preset.paper,
                "source": preset.weights.source,
                "licence": preset.weights.licence,
                "non_commercial": preset.weights.non_commercial,
                "fetched": found,
                "url": hub.address(preset.weights).url if found else None,
                "bytes": hub.size_in_bytes(preset.weights) if found else None,
                "cached": found and hub.converted_file(preset.name).is_file(),
            }
        )
    return rows


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
