"""Where weights are: a file, the model in the package, or published weights. torch is imported only to download."""

from __future__ import annotations

import difflib
from pathlib import Path

from maskkit import zoo
from maskkit.checkpoints.exported import SUFFIXES
from maskkit.errors import DataError, MaskkitError
from maskkit.files import require_file

BUILT_IN = "built-in"
"""The name of the weights in the package."""

BUILT_IN_WEIGHTS = Path(__file__).parents[1] / "weights" / "builtin.safetensors"

MOBILENET = "built-in mobilenetv2"
"""The name of the start in the package for models with a MobileNetV2."""

MOBILENET_WEIGHTS = BUILT_IN_WEIGHTS.with_name("mobilenetv2.safetensors")

AUTO = "auto"
"""The name of the best initial weights that there are (`maskkit.engine.start`)."""

RANDOM = "random"
"""The name of random initial weights."""


def find_weights(source: str | Path, preset: str | None = None) -> Path:
    """The weight file of ``source``: a path, ``"built-in"``, or what is downloaded: a preset with published weights, a
    repository of the Hugging Face Hub, ``"hf://user/name"``, or a file in it, ``"hf://user/name/FILE"``, which may be
    an exported one.

    ``"hub"`` means the published weights of ``preset``. Raises `DataError` when there are none or the download fails,
    `MaskkitError` for weights whose licence has to be accepted.
    """
    if source == "hub" and preset is not None:
        from maskkit.checkpoints import hub

        return hub.fetch(preset)
    if in_repository(source):
        return _fetch(str(source))
    path = BUILT_IN_WEIGHTS if source == BUILT_IN else Path(source)
    if not path.is_file():
        if path.exists():
            require_file(path, "weight file")
        names = zoo.list_models()
        if str(source) not in names:
            near = difflib.get_close_matches(str(source), names, n=3, cutoff=0.7)
            hint = f"; among the presets there is {', '.join(near)}" if near else ""
            raise DataError(f"{path}: there is no such weight file; give a .safetensors file or {BUILT_IN!r}{hint}")
        if zoo.preset(str(source)).weights is None:
            raise DataError(
                f"{path}: there is no such weight file; this is a preset without weights to fetch, train it first"
            )
        from maskkit.checkpoints import hub

        return hub.fetch(str(source))
    return path


def in_repository(source: str | Path) -> bool:
    """Whether ``source`` is the address of a repository of the Hub, or of a file in one."""
    return str(source).startswith("hf:/")


def _fetch(address: str) -> Path:
    try:
        from maskkit.checkpoints import repositories
    except ImportError as error:  # maskkit-runtime does without it
        raise MaskkitError(f"{address}: {error}; pip install huggingface_hub") from None
    if SUFFIXES.get(Path(address).suffix) in ("onnx", "openvino"):  # a .pt2 may hold code
        return repositories.fetch_exported(address)
    from maskkit.checkpoints import hub

    return hub.fetch_repository(address)


def initial_weights(source: str | Path | None, preset: str) -> str | Path:
    """What a training of ``preset`` starts from: a weight file (`find_weights`), `AUTO` (also for None) or `RANDOM`.

    Raises `DataError` when there is no such file.
    """
    if source in (None, AUTO):
        return AUTO
    return RANDOM if source == RANDOM else find_weights(source, preset)  # type: ignore[arg-type]
