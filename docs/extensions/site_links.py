"""Links of the site: pages lead to files of the repository, docstrings to other names of the package."""

import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from docutils import nodes
from sphinx.util.nodes import make_refnode

REPOSITORY = "https://github.com/maskkit/maskkit"
ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")
"""A link of Markdown that goes up; on GitHub it may lead out of the folder of the pages."""


def to_repository(text: str, page: Path) -> str:
    """The Markdown of ``page``, whose links to files outside of ``docs/`` lead to the repository."""

    def link(found: re.Match[str]) -> str:
        target, anchor = (page.parent / found[1]).resolve(), found[2] or ""
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT).as_posix()}{anchor})"

    return OUTSIDE.sub(link, text)


def read_source(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's event: a page has been read."""
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md":
        source[0] = to_repository(source[0], page)


def to_rst(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event: the lines of a docstring, as people read them in the code, become reStructuredText.

    A plural may follow a name, an example of a command is code, and a verb of the command line has ``Args``.
    """
    in_args = False
    for number, line in enumerate(lines):
        in_args = in_args or line == "Args:"
        if in_args:
            line = re.sub(r"^    (\w+): ", r":param \1: ", line).replace("Args:", "")
        if "Example: " in line:
            line = re.sub(r"Example: (.+)$", r"Example: ``\1``", line)
        else:
            line = re.sub(r"(?<=/)\*|\*(?=\.)", r"\\*", line)  # of a pattern for files
        lines[number] = re.sub(r"(``[^`]+``|`[^`]+`)(\w?)", lambda m: f"{m[1]}\\ {m[2]}" if m[2] else m[1], line)


def read_types(app: Any, tree: nodes.document) -> None:
    """Sphinx's event: a page is parsed. A type is looked for by its exact name first, then by `resolve`."""
    for node in tree.findall(lambda node: isinstance(node, nodes.Element) and node.get("refdomain") == "py"):
        node.attributes.pop("refspecific", None)  # type: ignore[union-attr]


def resolve(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Node | None:
    """Sphinx's event: a name of a docstring or of a type was not found as it stands.

    A name that a module has from another one is the other's; a name that only one module has is meant. Names of other
    libraries, of fields and of commands stay as they are. A name that says that it is one of this package must exist:
    it is left to Sphinx, which complains.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    ours = re.fullmatch(r"(maskkit(?:\.\w+)*)\.(\w+)", target)
    if ours is not None:
        value = None
        with suppress(ImportError):  # processes that write pages have not read the modules
            value = getattr(import_module(ours[1]), ours[2], None)
        if isinstance(value, TypeVar):
            return content
        target = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    found = env.domains.python_domain.find_obj(env, None, None, target, None, 0 if ours is not None else 1)
    if len(found) == 1:
        name, entry = found[0]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)
    return None if ours is not None else content


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", to_rst)
    app.connect("doctree-read", read_types)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
