"""Generates docs/models.md and the README's table of methods from the cards of the zoo.

``python -m maskkit.zoo.tables`` writes both; a test fails when they are out of date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from maskkit import zoo
from maskkit.zoo.card import Method, Preset

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
"""The markers around the README's table."""

_SUPERVISION = {"masks": "masks", "boxes": "boxes", "label_map": "label maps", "tags": "image tags"}


def models_page() -> str:
    """``docs/models.md``: every preset, method by method."""
    parts = [
        "# Models\n\n"
        "This page is generated from the cards in `src/maskkit/zoo` by `python -m maskkit.zoo.tables`.\n\n"
        "*Paper* is the result of the paper or of the publisher of the weights. *Ours* is our own; the commands are "
        "in [benchmarks](benchmarks/README.md). A dash means that there is none."
    ]
    for method in _methods():
        rows = [_row(method, preset) for preset in method.presets]
        parts.append(
            f"## {method.title}\n\n{method.paper}\n\nAgrees with: {method.agreement}.\n\n"
            + _table(("preset", "task", "supervision", "paper", "ours", "published weights"), rows)
        )
    return "\n\n".join(parts) + "\n"


def methods_table() -> str:
    """The README's table: a row per method."""
    rows = []
    for method in _methods():
        first = method.presets[0]
        small = [preset.name for preset in method.presets if preset.small]
        rows.append(
            (
                method.title,
                _supervision(method, first),
                f"`{first.name}`",
                f"`{small[0]}`" if small else "-",
                first.paper or "-",
                method.agreement,
            )
        )
    return _table(("method", "supervision", "published preset", "small preset", "paper", "agrees with"), rows)


def insert(readme: str) -> str:
    """The README with its table regenerated. Raises ``ValueError`` when the markers are missing."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{methods_table()}\n{END}{after}"


def _methods() -> Iterator[Method]:
    seen = set()
    for name in zoo.METHODS:
        method = zoo.method(name)
        if id(method) not in seen:
            seen.add(id(method))
            yield method


def _row(method: Method, preset: Preset) -> tuple[str, ...]:
    task = method.model.task_of(preset.model)
    numbers = (preset.paper or "-", preset.ours or "-", str(preset.weights or "-"))
    return (f"`{preset.name}`", task, _supervision(method, preset), *numbers)


def _supervision(method: Method, preset: Preset) -> str:
    known = method.model.supervision_of(preset.model)
    return " or ".join(text for name, text in _SUPERVISION.items() if name in known)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Write both files in the working directory, the root of the repository."""
    readme = Path("README.md")
    readme.write_text(insert(readme.read_text(encoding="utf-8")), encoding="utf-8")
    Path("docs/models.md").write_text(models_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
