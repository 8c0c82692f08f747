"""What reports share: templates, embedded images and figures, confusion matrices.

A report is one self-contained HTML file. Its templates escape every value.
"""

import base64
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from maskkit.data.images import read_pixels
from maskkit.errors import DataError
from maskkit.eval.numbers import shown
from maskkit.files import replacing
from maskkit.geometry.paint import tint
from maskkit.infer.draw import one_line

WORST = 12
"""Number of worst images to show."""
CELLS = 60
"""Largest number of classes in the confusion matrix: those with the most objects or pixels."""

_WRONG = np.array([214, 40, 40], np.uint8)


class Table(NamedTuple):
    """Cells as text; ``bars`` are shares, 0 to 1, drawn behind the row names."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] | None = None


class Shown(NamedTuple):
    """An image of the report: its caption, and the sources of its drawings or the reason why there are none."""

    caption: str
    sources: Sequence[str] = ()
    error: str = ""


class Confusion(NamedTuple):
    """The confusion matrix as a figure, the number of classes shown and present, and the most frequent confusions."""

    drawing: str
    shown: int
    present: int
    mixed: Sequence[tuple[str, str, int]]


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write ``template`` filled with ``values``, among them ``title`` and ``notes`` (lines under the title)."""
    page = _environment().get_template(template).render(values)
    with replacing(path) as temporary:  # file names may contain bytes that are not text
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def fragment(template: str, **values: Any) -> Markup:
    """``template`` filled with ``values``: HTML that can stand among the notes of `write_page`."""
    return Markup(_environment().get_template(template).render(values))


def attempt(path: Path, write: Callable[[], None]) -> str | None:
    """Write a report by ``write``; returns a line for the user where that fails: a report never costs a result.

    An older report at ``path`` is removed then, because it is about something else.
    """
    try:
        write()
    except Exception as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        about = reason if reason.startswith(str(path)) else f"{path}: not written ({type(error).__name__}: {reason})"
        return f"{about}; the results are not affected"
    return None


def show(caption: str, draw: Callable[[], Sequence[UInt8[np.ndarray, "h w 3"]]]) -> Shown:
    """An image with its drawings side by side, or the reason why it cannot be drawn."""
    try:
        return Shown(caption, [jpeg(pixels) for pixels in draw()])
    except (DataError, KeyError) as error:
        return Shown(caption, error=str(error))


def reduced(path: Path, side: int) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """An image file as RGB with its longer side at most ``side`` pixels, and the scale. Raises `DataError`."""
    image = Image.fromarray(read_pixels(path))
    factor = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return np.asarray(image.resize(size)), factor


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of labels, numbers or bools at another (height, width), by nearest neighbour."""
    kind = np.uint8 if values.dtype in (np.uint8, np.bool_) else np.int32
    small = np.asarray(Image.fromarray(values.astype(kind)).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return small.astype(bool) if values.dtype == np.bool_ else small


def mark_errors(image: UInt8[np.ndarray, "h w 3"], wrong: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the pixels of ``wrong (h, w)`` tinted red."""
    return tint(image, wrong.astype(np.int8) - 1, _WRONG[None], 0.75)


def jpeg(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Pixels as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def svg(figure: Figure) -> str:
    """A figure as a data URI."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters that its font lacks
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def confusions(
    counts: Int[np.ndarray, "k+1 k+1"], cells: Int[np.ndarray, "k+1 k+1"], names: Sequence[str], nothing: bool
) -> Confusion:
    """The confusion matrix of ``counts``, true classes (rows) by predicted classes (columns), "nothing" last.

    ``cells`` are the numbers to show. With ``nothing``, its row and column are shown, and it is left out of the most
    frequent confusions.
    """
    labels = [*names, "nothing"]
    present = np.flatnonzero((counts.sum(0) + counts.sum(1))[:-1])
    shown = np.sort(present[np.argsort(-counts[present].sum(1), kind="stable")][:CELLS])
    off = counts.copy()
    np.fill_diagonal(off, 0)
    if nothing:
        off[:, -1] = off[-1] = 0
    top = np.argsort(-off, axis=None, kind="stable")[:10]
    pairs = [(*np.unravel_index(i, off.shape), int(off.flat[i])) for i in top if off.flat[i]]
    places = np.append(shown, len(names)) if nothing else shown
    drawing = svg(_heat(cells[np.ix_(places, places)], [labels[i] for i in places]))
    return Confusion(drawing, len(shown), len(present), [(labels[a], labels[b], n) for a, b, n in pairs])


def _heat(counts: Int[np.ndarray, "n n"], labels: Sequence[str]) -> Figure:
    """Counts as a matrix, shaded by their share of the row."""
    side = max(3.0, min(0.45 * len(labels), 11.0)) + 1.2
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    font = 9 if len(labels) <= 20 else 6
    names = [one_line(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=90, fontsize=font, parse_math=False)  # $ is literal
    axes.set_yticks(range(len(labels)), names, fontsize=font, parse_math=False)
    if len(labels) <= 25:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                ink = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", fontsize=font - 1, color=ink)
    return figure


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("maskkit.eval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["shown"] = shown
    return environment
