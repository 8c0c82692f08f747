"""The generated pages are those of the cards."""

from pathlib import Path

import pytest

from maskkit.zoo import tables

ROOT = Path(__file__).parents[2]


def test_the_pages_are_up_to_date() -> None:
    """``make tables`` writes them anew."""
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8") == tables.models_page()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == tables.insert(readme)


def test_a_readme_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="methods:begin"):
        tables.insert("# maskkit\n")
