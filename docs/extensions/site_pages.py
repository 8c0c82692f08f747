"""Pages of the site that are made of the package: a page for each method, the reference, the command line, notebooks.

They are written to ``docs/generated``, which is not part of the repository, when Sphinx begins.
"""

import base64
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import maskkit
from maskkit import zoo
from maskkit.cli import VERBS, main
from maskkit.zoo import tables
from maskkit.zoo.card import Method, Preset

DOCS = Path(__file__).parents[1]
PACKAGE = Path(maskkit.__file__).parent
SOURCE = "../../../src/maskkit"
"""Of the package, from the page of a method."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
"""Colours of a terminal."""


def pages() -> Iterator[tuple[str, str | bytes]]:
    """The files of ``docs/generated``: name and content."""
    for method in tables.methods():
        yield f"methods/{_module(method)}.md", method_page(method)
    for package, modules in packages().items():
        yield f"reference/{package}.rst", reference_page(package, modules)
    yield "command_line.md", command_line()
    for path in sorted(DOCS.glob("notebooks/*.ipynb")):
        yield from notebook_page(path)


def write(folder: Path) -> None:
    """Write `pages` to ``folder``, and remove what is no longer one of them; what has not changed stays untouched."""
    found = {folder / name: text if isinstance(text, bytes) else text.encode() for name, text in pages()}
    for path in folder.rglob("*"):
        if path.is_file() and path not in found:
            path.unlink()
    for path, content in found.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def method_page(method: Method) -> str:
    """The page of a method: the docstring of its module, its tensors, its presets with their results."""
    module = _module(method)
    headline, _, about = inspect.cleandoc(sys.modules[method.model.__module__].__doc__ or "").partition("\n")
    small = next((p for p in method.presets if p.small), None)
    published = next((p for p in method.presets if p.weights is not None and p.weights.fetched), None)
    commands = [f"maskkit predict photo.jpg --model {published.name}"] if published else []
    commands += [f"maskkit train --model {small.name} --data pets/"] if small and _trains(method, small) else []
    parts = [
        f"# {method.title}",
        _lead(headline),
        *([_fence("", "\n".join(commands))] if commands else []),
        _fence("{eval-rst}", about.strip()),
        "## The tensors",
        _fence("text", drawing(method)),
        "## Presets and results",
        "*Paper* is the result of the paper or of the publisher of the weights. *Ours* is our own; "
        "[benchmarks](../../benchmarks/README.md) has the commands, and says where we lose. A dash: there is none.",
        tables.presets_table(method),
        "## What it was compared with",
        f"{method.agreement[:1].upper()}{method.agreement[1:]}. The cases and their limits: "
        "[numerical agreement](../../benchmarks/agreement.md).",
        f"The code: [`models/{Path(inspect.getfile(method.model)).name}`]({SOURCE}/models/"
        f"{Path(inspect.getfile(method.model)).name}), its card: [`zoo/{module}.py`]({SOURCE}/zoo/{module}.py); "
        f"the reference: {{py:mod}}`{method.model.__module__}`.",
    ]
    return "\n\n".join(parts) + "\n"


def drawing(method: Method) -> str:
    """The way of an image through the method, from its pixels to the prediction, with the shape of every tensor."""
    preset = next((p for p in method.presets if p.small), method.presets[0])
    with torch.device("meta"):  # shapes without values: the largest model costs nothing
        decoder = method.model(preset.model).decoder
    table = tensor_table(sys.modules[method.model.__module__].__doc__ or "")
    chosen = re.findall(r"^    (\w+): A  # (\(.*?\))", inspect.getsource(decoder.outputs), re.MULTILINE)
    height, width = preset.input.size
    rows = [
        ("image (H, W, 3)", f"{preset.input.resize} to {width} x {height} in {preset.name}"),
        ("images (B, 3, h, w)", "forward; the shapes are those of the paper's input"),
        *((f"    {name} {shape}", "") for name, shape in table),
        (f"{method.model.__name__} raw outputs", "select: fixed shapes, exported as one graph"),
        *((f"    {name} {shape}", "") for name, shape in chosen),
        (decoder.outputs.__name__, f"decoder {type(decoder).__name__}: numpy, in the pixels of the image"),
        ("Prediction", ""),
    ]
    lines = []
    for text, step in rows:
        lines.append(text)
        if step:
            lines += ["  |", f"  |  {step}", "  v"]
    return "\n".join(lines)


def tensor_table(docstring: str) -> list[tuple[str, str]]:
    """Name and shape of the raw outputs, from the first table of a model's docstring."""
    found = re.search(
        r"^(=+  =+(?:  =+)?)\n(.*?)\n\1\n(.*?)\n\1$", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL
    )
    if found is None:
        return []
    starts = [m.start() for m in re.finditer("=+", found[1])]
    ends = [*starts[1:2], starts[2] if len(starts) > 2 else None]
    rows: list[tuple[str, str]] = []
    for line in found[3].splitlines():
        name, shape = line[: ends[0]].strip(), line[starts[1] : ends[1]].strip()
        if name:
            rows.append((name, shape))
        elif shape and rows:  # a cell of several lines
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {shape}")
    return rows


def packages() -> dict[str, list[str]]:
    """Public modules by the package that has them; a module at the top stands alone."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("maskkit", *path.relative_to(PACKAGE).with_suffix("").parts)
        if any(part.startswith("_") for part in parts[:-1]) or parts[-1] == "__main__":
            continue
        if parts[-1] == "__init__":
            found.setdefault(".".join(parts[:-1]), []).insert(0, ".".join(parts[:-1]))
        elif not parts[-1].startswith("_"):
            found.setdefault(".".join(parts if len(parts) == 2 else parts[:-1]), []).append(".".join(parts))
    return {package: sorted(modules) for package, modules in sorted(found.items())}


def reference_page(package: str, modules: list[str]) -> str:
    """Every public name of some modules, by autodoc."""
    parts = [f"{package}\n{'=' * len(package)}"]
    for module in modules:
        if module != package:
            parts.append(f"{module}\n{'-' * len(module)}")
        parts.append(f".. automodule:: {module}")
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """What ``maskkit VERB --help`` says of every verb."""
    parts = [
        "# Command line",
        "What `maskkit VERB --help` prints. The options of `train` and `import` follow the preset.",
    ]
    with mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}):
        for verb in VERBS:
            with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
                main([verb, "--help"])
            lines = [line.rstrip() for line in ANSI.sub("", printed.getvalue()).splitlines()]
            parts += [f"## {verb}", _fence("text", "\n".join(lines).strip())]
    return "\n\n".join(parts) + "\n"


def notebook_page(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """A notebook as a page, with the images that its cells drew when it was run."""
    parts: list[str] = []
    images: list[tuple[str, bytes]] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).replace("](../", "](../../")  # the page lies a folder deeper
        parts.append(source if cell["cell_type"] == "markdown" else _fence("python", source))
        for output in cell.get("outputs", ()):
            data: dict[str, Any] = output.get("data", {})
            if "image/png" in data:
                images.append((f"{path.stem}_{len(images)}.png", base64.b64decode("".join(data["image/png"]))))
                parts.append(f"![]({images[-1][0]})")
            elif text := "".join(output.get("text", data.get("text/plain", ()))).strip():
                parts.append(_fence("text", ANSI.sub("", text)))
    link = f"This page is the notebook [`{path.name}`](../../notebooks/{path.name})."
    parts.insert(1, link)
    yield f"notebooks/{path.stem}.md", "\n\n".join(parts) + "\n"
    for name, content in images:
        yield f"notebooks/{name}", content


def _module(method: Method) -> str:
    """The module of the method's card."""
    return zoo.METHODS[method.presets[0].name.partition("-")[0]]


def _lead(headline: str) -> str:
    """What a docstring's first line says behind the name of the method, as a sentence."""
    said = headline.partition(": ")[2] or headline
    return said[:1].upper() + said[1:]


def _trains(method: Method, preset: Preset) -> bool:
    """Whether masks or boxes of objects are enough."""
    return bool({"masks", "boxes"} & method.model.supervision_of(preset.model))


def _fence(kind: str, text: str) -> str:
    return f"```{kind}\n{textwrap.dedent(text)}\n```"


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("builder-inited", lambda app: write(DOCS / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
