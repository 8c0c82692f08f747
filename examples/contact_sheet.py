"""Predictions for several images on one sheet, as in the README.

python examples/contact_sheet.py IMAGE... --out docs/builtin.jpg
"""

import argparse
from pathlib import Path

from PIL import Image, ImageOps

import maskkit
from maskkit.data.images import read_pixels
from maskkit.infer.draw import overlay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--model", default="built-in")
    parser.add_argument("--score", type=float, default=0.4)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--cell", type=int, nargs=2, default=(320, 240), help="width and height in pixels")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    segmenter = maskkit.load(given.model)
    width, height = given.cell
    rows = -(-len(given.images) // given.columns)
    sheet = Image.new("RGB", (given.columns * width, rows * height), "white")
    for i, path in enumerate(given.images):
        drawn = Image.fromarray(overlay(read_pixels(path), segmenter.predict(path, given.score)))
        cell = ImageOps.pad(drawn, (width, height), color="white")
        sheet.paste(cell, (i % given.columns * width, i // given.columns * height))
    sheet.save(given.out, quality=85)


if __name__ == "__main__":
    main()
