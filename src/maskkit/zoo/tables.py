"""Generates docs/models.md and the tables of README.md and docs/weights.md from the cards of the zoo.

``python -m maskkit.zoo.tables`` writes them; a test fails when they are out of date.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from maskkit import zoo
from maskkit.config import SUPERVISION
from maskkit.zoo.card import Method, Preset

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
"""The markers around the README's table."""
SOURCES_BEGIN, SOURCES_END = "<!-- sources:begin -->", "<!-- sources:end -->"
"""Those around the table of docs/weights.md."""


def models_page() -> str:
    """``docs/models.md``: every preset, method by method."""
    parts = [
        "# Models\n\n"
        "This page is generated from the cards in `src/maskkit/zoo` by `python -m maskkit.zoo.tables`.\n\n"
        "*Paper* is the result of the paper or of the publisher of the weights. *Ours* is our own; the commands are "
        "in [benchmarks](benchmarks/README.md). A dash means that there is none."
    ]
    for method in methods():
        about = f"## {method.title}\n\n{method.paper}\n\nAgrees with: {method.agreement}.\n\n"
        parts.append(about + presets_table(method))
    return "\n\n".join(parts) + "\n"


def presets_table(method: Method) -> str:
    """The presets of a method: task, supervision, the paper's result, ours, and published weights."""
    rows = [_row(method, preset) for preset in method.presets]
    return _table(("preset", "task", "supervision", "paper", "ours", "published weights"), rows)


def methods_table() -> str:
    """The README's table: a row per method."""
    rows: list[tuple[str, ...]] = []
    for method in methods():
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


def sources_table() -> str:
    """The table of docs/weights.md: what is published, where, under which licence, and how it is known to load."""
    rows: list[tuple[str, ...]] = []
    for method in methods():
        groups: dict[tuple[str, str], list[Preset]] = {}
        for preset in method.presets:
            if preset.weights is not None:
                groups.setdefault((preset.weights.source, preset.weights.licence), []).append(preset)
        for (source, licence), presets in groups.items():
            names = ", ".join(f"`{p.name}`{_by_hand(p)}" for p in presets)
            rows.append((source, licence, method.title, names, proof(method, source) or "-"))
    rows.sort(key=lambda row: row[0].lower())
    return _table(("source", "licence", "model", "presets", "loads: proven by"), rows)


def proof(method: Method, source: str) -> str:
    """The part of a method's agreement that is about the weights of ``source``; empty where there is none."""
    name = source.split(",")[0].rpartition("/")[2]
    return "; ".join(part.strip() for part in method.agreement.split(";") if name.lower() in part.lower())


def insert(page: str, table: str | None = None, begin: str = BEGIN, end: str = END) -> str:
    """A page with its table regenerated, by default the README. Raises ``ValueError`` when the markers are missing."""
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page has no {begin} ... {end}")
    return f"{before}{begin}\n{methods_table() if table is None else table}\n{end}{after}"


def weights_page(page: str) -> str:
    """``docs/weights.md`` with its table regenerated."""
    return insert(page, sources_table(), SOURCES_BEGIN, SOURCES_END)


def methods() -> Iterator[Method]:
    """Every method of the package, each once, by name."""
    seen: set[int] = set()
    for name in zoo.METHODS:
        method = zoo.method(name)
        if id(method) not in seen:
            seen.add(id(method))
            yield method


def _by_hand(preset: Preset) -> str:
    return "" if preset.weights is not None and preset.weights.fetched else " (by hand)"


def _row(method: Method, preset: Preset) -> tuple[str, ...]:
    task = method.model.task_of(preset.model)
    numbers = (preset.paper or "-", preset.ours or "-", str(preset.weights or "-"))
    return (f"`{preset.name}`", task, _supervision(method, preset), *numbers)


def _supervision(method: Method, preset: Preset) -> str:
    known = method.model.supervision_of(preset.model)
    return " or ".join(text for name, text in SUPERVISION.items() if name in known)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Write all three files in the working directory, the root of the repository."""
    readme = Path("README.md")
    readme.write_text(insert(readme.read_text(encoding="utf-8")), encoding="utf-8")
    weights = Path("docs/weights.md")
    weights.write_text(weights_page(weights.read_text(encoding="utf-8")), encoding="utf-8")
    Path("docs/models.md").write_text(models_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
