"""A ``.pt2`` package: the graph, compiled ahead of time for this kind of machine by AOTInductor."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from maskkit.errors import MaskkitError
from maskkit.export.graph import Graph


def to_package(graph: Graph, path: Path, description: Mapping[str, Any]) -> None:
    """Compile the graph and write the package, with the description as its metadata. Needs a C++ compiler.

    Raises `MaskkitError` if there is none, or if the graph cannot be compiled.
    """
    text = {"maskkit": json.dumps(description)}
    try:
        torch._inductor.aoti_compile_and_package(
            graph.program, package_path=str(path), inductor_configs={"aot_inductor.metadata": text}
        )
    except Exception as error:  # of the compiler, of inductor, of torch: they have no common base
        raise MaskkitError(f"{path}: cannot be compiled ({' '.join(str(error).split())[:200]})") from error


def write_description(path: Path, description: Mapping[str, Any]) -> None:
    """Put ``description`` into the package in place of the one that it was compiled with: a package is a zip file, and
    its metadata are JSON beside the compiled code."""
    made = path.with_name(f"{path.name}.described")
    with ZipFile(path) as old, ZipFile(made, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("_metadata.json"):
                content = json.dumps(json.loads(content) | {"maskkit": json.dumps(description)}).encode()
            new.writestr(entry, content)
    os.replace(made, path)
