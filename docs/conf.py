"""The site, built by `make docs`: the pages of this folder, and what `site_pages` makes of cards and docstrings."""

import sys
from pathlib import Path

import maskkit

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "maskkit"
author = copyright = "the maskkit authors"
release = maskkit.__version__
extensions = ["sphinx.ext.autodoc", "myst_parser", "site_pages", "site_links"]
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = [
    "toc.not_readable"
]  # docs/support.md, until `make support` was run; tests/test_docs.py sees the rest

# docstrings: a name in backticks is a link where there is such a name (`site_links`)
default_role = "py:obj"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    "ignore-module-all": True,
    "member-order": "bysource",
}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries = False  # the side bar has pages and headings, not every name

# pages: headings have the anchors that they have on GitHub
myst_heading_anchors = 4
highlight_language = "none"

html_theme = "furo"
html_title = "maskkit"
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # it reads other pages, which browsers forbid to a page that is opened as a file
