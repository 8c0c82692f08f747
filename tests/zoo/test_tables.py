"""The generated pages are those of the cards."""

from pathlib import Path

import pytest

from maskkit import zoo
from maskkit.zoo import tables

ROOT = Path(__file__).parents[2]


def test_the_pages_are_up_to_date() -> None:
    """``make tables`` writes them anew."""
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == tables.models_page()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == tables.insert(readme)
    weights = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert weights == tables.weights_page(weights)


UNPROVEN = {"github.com/google-coral/test_data, de-quantised"}
"""Weights that we converted ourselves; tests/test_semantic_runs.py imports their names."""


def test_all_published_weights_are_known_to_load() -> None:
    """The method's agreement names the source, as cases that are reproduced or as a live comparison."""
    for preset in zoo.presets():
        if preset.weights is not None and preset.weights.source not in UNPROVEN:
            proof = tables.proof(zoo.method(preset.name), preset.weights.source)
            assert "case" in proof or "live" in proof or any(c.isdigit() for c in proof), preset.name


def test_a_readme_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="methods:begin"):
        tables.insert("# maskkit\n")
