"""Decoding (post-processing): from the outputs of a model to predictions in original pixels. numpy and scipy only.

A model declares how its outputs are decoded by ``model.decoder``, one of the frozen dataclasses of this package. The
decoder is stored as JSON in checkpoints and exported files and reads nothing but arrays, so that every runtime gives
the same masks. Masks are encoded as run lengths one at a time, never held dense for the whole image.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Never, Protocol, cast

import numpy as np

from maskkit.decode.boxes import BoxesOnly, InBoxes, InWindows
from maskkit.decode.grid import OverInput
from maskkit.decode.groups import Embeddings, Kernels
from maskkit.decode.label_map import LabelMap
from maskkit.decode.queries import Queries
from maskkit.decode.segments import Segments
from maskkit.decode.tags import TaggedLabelMap
from maskkit.decode.votes import Votes
from maskkit.prediction import Categories, ImageMeta, Prediction


class Decoder(Protocol):
    """Turns what `Model.select` returns, for one image, into a prediction."""

    outputs: ClassVar[Any]
    """The named tuple of `maskkit.decode.outputs` that it reads."""

    # Never: each decoder takes its own type of outputs, and `decode` passes that type
    def __call__(self, out: Never, meta: ImageMeta, categories: Categories, score: float = 0.0) -> Prediction:
        """The prediction in original pixels: objects with a score above ``score``."""
        ...


DECODERS: dict[str, type] = {
    "boxes_only": BoxesOnly,
    "in_boxes": InBoxes,
    "in_windows": InWindows,
    "over_input": OverInput,
    "votes": Votes,
    "kernels": Kernels,
    "embeddings": Embeddings,
    "label_map": LabelMap,
    "tagged_label_map": TaggedLabelMap,
    "segments": Segments,
    "queries": Queries,
}
"""Every decoder by its name in files."""


def decode(
    decoder: Decoder,
    arrays: Mapping[str, np.ndarray],
    metas: Sequence[ImageMeta],
    categories: Categories,
    score: float = 0.0,
) -> list[Prediction]:
    """Predictions of a batch; ``arrays`` are the fields of the decoder's outputs, each with a leading batch axis."""
    outputs = decoder.outputs
    images = (outputs(**{name: values[b] for name, values in arrays.items()}) for b in range(len(metas)))
    return [decoder(cast(Never, out), meta, categories, score) for out, meta in zip(images, metas, strict=True)]


def to_dict(decoder: Decoder) -> dict[str, Any]:
    """A decoder as JSON types: its name and its fields."""
    name = next(name for name, kind in DECODERS.items() if kind is type(decoder))
    return {"name": name, **dataclasses.asdict(decoder)}  # type: ignore[call-overload]


def from_dict(data: Mapping[str, Any]) -> Decoder:
    """The inverse of `to_dict`. Raises ``ValueError`` for an unknown name or field, or a wrong type."""
    name = data.get("name")
    if not isinstance(name, str) or name not in DECODERS:
        raise ValueError(f"there is no decoder {name!r}; known are {', '.join(DECODERS)}")
    kind = DECODERS[name]
    defaults: dict[str, object] = {f.name: f.default for f in dataclasses.fields(kind)}
    given = {key: value for key, value in data.items() if key != "name"}
    for key, value in given.items():
        if key not in defaults:
            raise ValueError(f"decoder {name!r} has no field {key!r}; it has {', '.join(defaults) or 'none'}")
        expected = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
        if not isinstance(value, expected) or isinstance(value, bool) is not isinstance(defaults[key], bool):
            raise ValueError(f"decoder {name!r}: {key} is {value!r}, not a {type(defaults[key]).__name__}")
    return kind(**given)
