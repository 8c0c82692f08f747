"""Parts of an HTML report that needs nothing beside it: tables, drawings, images, the page itself."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from matplotlib.figure import Figure
from PIL import Image

from maskkit.files import replacing


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write one HTML file of ``sections``, which are HTML already."""
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(sections))
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def table(header: Sequence[str], body: Sequence[Sequence[str]], bars: Sequence[float] | None = None) -> str:
    """An HTML table; with ``bars``, shares 0 to 1, one bar behind each row's name."""
    lines = []
    for i, cells in enumerate(body):
        share = 100 * max(bars[i], 0) if bars is not None else 0
        fill = f' style="background:linear-gradient(90deg,#dbe9fb {share:.1f}%,transparent {share:.1f}%)"'
        first = f"<th{fill if bars is not None else ''}>{escape(cells[0])}</th>"
        lines.append(f"<tr>{first}{''.join(f'<td>{escape(c)}</td>' for c in cells[1:])}</tr>")
    heads = "".join(f"<th>{escape(c)}</th>" for c in header)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def embedded(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Pixels as an image inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def drawing(figure: Figure, text: str) -> str:
    """A figure as a drawing inside the page; ``text`` says what it shows."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{escape(text)}" src="data:image/svg+xml;base64,{data}"></p>'


def heat(counts: Int[np.ndarray, "n n"], labels: list[str]) -> Figure:
    """Counts as a square of cells, shaded by their share of the row."""
    side = max(3.0, min(0.45 * len(labels), 11.0)) + 1.2
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    font = 9 if len(labels) <= 20 else 6
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(len(labels)), labels, fontsize=font)
    if len(labels) <= 25:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                ink = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, str(count), ha="center", va="center", fontsize=font - 1, color=ink)
    return figure


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1f23; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d9dde3; padding-bottom: .2rem; }
.note { color: #5a626c; margin: .3rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eceef1; white-space: nowrap; }
th:first-child { text-align: left; min-width: 9rem; }
tbody th { font-weight: normal; }
img { max-width: 100%; }
figure { margin: 1.2rem 0; }
.pair { display: flex; gap: .5rem; align-items: flex-start; }
.pair img { width: calc(50% - .25rem); }
.three { display: flex; gap: .5rem; align-items: flex-start; }
.three img { width: calc(33.3% - .33rem); }
figcaption { color: #5a626c; font-size: .9rem; }
.key { color: white; border-radius: .2rem; padding: 0 .4rem; margin-left: .3rem; }
"""
