"""Where weights are: a file, the model in the package, or published weights. torch is imported only to download."""

from __future__ import annotations

from pathlib import Path

from maskkit import zoo
from maskkit.errors import DataError
from maskkit.files import require_file

BUILT_IN = "built-in"
"""The name of the weights in the package."""

BUILT_IN_WEIGHTS = Path(__file__).parents[1] / "weights" / "builtin.safetensors"

AUTO = "auto"
"""The name of the best initial weights that there are (`maskkit.engine.start`)."""

RANDOM = "random"
"""The name of random initial weights."""


def find_weights(source: str | Path, preset: str | None = None) -> Path:
    """The weight file of ``source``: a path, ``"built-in"``, or a preset with published weights, which are downloaded.

    ``"hub"`` means the published weights of ``preset``. Raises `DataError` when there are none or the download fails.
    """
    if source == "hub" and preset is not None:
        from maskkit.checkpoints import hub

        return hub.fetch(preset)
    path = BUILT_IN_WEIGHTS if source == BUILT_IN else Path(source)
    if not path.is_file():
        if path.exists():
            require_file(path, "weight file")
        is_preset = str(source) in zoo.list_models()
        if is_preset:
            from maskkit.checkpoints import hub

            if hub.can_fetch(str(source)):
                return hub.fetch(str(source))
        hint = (
            "this is a preset without weights to fetch, train it first"
            if is_preset
            else f"give a .safetensors file or {BUILT_IN!r}"
        )
        raise DataError(f"{path}: there is no such weight file; {hint}")
    return path


def initial_weights(source: str | Path | None, preset: str) -> str | Path:
    """What a training of ``preset`` starts from: a weight file (`find_weights`), `AUTO` (also for None) or `RANDOM`.

    Raises `DataError` when there is no such file.
    """
    if source in (None, AUTO):
        return AUTO
    return RANDOM if source == RANDOM else find_weights(source, preset)  # type: ignore[arg-type]
