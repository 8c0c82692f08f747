"""A ``.pt2`` package: the graph compiled ahead of time for this kind of machine, by AOTInductor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maskkit.errors import MaskkitError
from maskkit.export.graph import Graph


def to_package(graph: Graph, path: Path, description: Mapping[str, Any]) -> None:
    """Compile the graph and write the package, with the description as its metadata. Takes a C++ compiler.

    Raises `MaskkitError` when there is none, or when the graph cannot be compiled.
    """
    text = {"maskkit": json.dumps(description)}
    try:
        torch._inductor.aoti_compile_and_package(
            graph.program, package_path=str(path), inductor_configs={"aot_inductor.metadata": text}
        )
    except Exception as error:  # of the compiler, of inductor, of torch: nothing common
        raise MaskkitError(f"{path}: cannot be compiled ({' '.join(str(error).split())[:200]})") from error
