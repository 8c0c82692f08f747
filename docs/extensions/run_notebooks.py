"""Run the notebooks, and keep in them what they print and draw: `make notebooks`.

What goes to the error stream (progress, warnings with paths of this machine) and the times of the cells are left out.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> None:
    """Run a notebook in a folder that is removed afterwards. Raises ``CellExecutionError`` where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
    nbformat.write(plain(notebook), path)


def plain(notebook: Any) -> Any:
    """The notebook as it is kept."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(map(str, NOTEBOOKS.glob("*.ipynb"))):
        print(each, flush=True)
        run(Path(each))
