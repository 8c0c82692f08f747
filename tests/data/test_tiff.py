"""Large TIFF files are read part by part, and what is wrong with one is a clear line."""

import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from maskkit.data import images, tiff
from maskkit.data.dataset import Dataset
from maskkit.data.images import read_pixels, read_reduced
from maskkit.data.records import Record
from maskkit.data.tiff import LargeTiff, open_tiff, said_of_pages
from maskkit.errors import DataError
from maskkit.eval.rows import Row, rows_of
from maskkit.geometry.windows import Rect
from maskkit.infer import tiles
from maskkit.infer.predict import Failure
from tests.infer.test_tiles import CLASSES, drawn, exact, masks_of

tifffile = pytest.importorskip("tifffile")

SIZE = (150, 203)


def ramp(channels: int) -> np.ndarray:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    planes = np.stack([y, x, (x * y) % 256, 255 - y], -1)[..., :channels]
    return planes.astype(np.uint8)


def written(path: Path, kind: str) -> Path:
    """A file of one kind; Pillow writes those with JPEG."""
    pixels = ramp({"grey": 1, "alpha": 4}.get(kind, 3))
    if kind == "jpeg":
        Image.fromarray(pixels).save(path, compression="jpeg", quality=95)
        return path
    options = {
        "tiles": {"tile": (64, 48), "compression": "zlib"},
        "raw tiles": {"tile": (64, 64)},
        "mapped": {},
        "strips": {"rowsperstrip": 17, "compression": "zlib"},
        "predictor": {"tile": (64, 64), "compression": "zlib", "predictor": True},
        "grey": {"tile": (64, 64), "compression": "zlib"},
        "alpha": {"tile": (64, 64), "compression": "zlib", "extrasamples": ["unassalpha"]},
        "big": {"tile": (64, 64), "compression": "zlib", "bigtiff": True},
    }
    grey = {"photometric": "minisblack"} if kind == "grey" else {"photometric": "rgb"}
    tifffile.imwrite(path, pixels[..., 0] if kind == "grey" else pixels, **grey, **options[kind])
    return path


@pytest.mark.parametrize(
    "kind", ["tiles", "raw tiles", "mapped", "strips", "predictor", "grey", "alpha", "big", "jpeg"]
)
def test_parts_are_those_of_the_whole_image(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TiffImagePlugin, "STRIP_SIZE", 20_000)
    path = written(tmp_path / "a.tif", kind)
    whole = read_pixels(path)
    with open_tiff(path, 40, 1000) as file:
        assert isinstance(file, LargeTiff)
        assert file.size == whole.shape[:2] == SIZE
        assert (file._array is not None) == (kind == "mapped")
        for place in (Rect(0, 0, 40, 40), Rect(60, 100, 130, 203), Rect(149, 202, 150, 203), Rect(0, 0, *SIZE)):
            part = whole[place.top : place.bottom, place.left : place.right]
            assert abs(file[place].astype(int) - part).max() <= (2 if kind == "jpeg" else 0)
        assert len(file._decoded) <= 3 * 5
        expected = Image.fromarray(file[Rect(0, 0, *SIZE)]).reduce(4)
        np.testing.assert_array_equal(file.reduced(4), np.asarray(expected))


def test_jpeg_tiles_in_rgb_and_in_ycbcr(tmp_path: Path) -> None:
    """As scanners of slides write them, with the tables in the header of the page."""
    import io

    tile = ramp(3)[:128, :128]
    for photometric in ("rgb", "ycbcr"):
        content = io.BytesIO()
        Image.fromarray(tile).save(content, "jpeg", quality=95, keep_rgb=photometric == "rgb", subsampling=0)
        data = re.sub(rb"\xff\xee\x00\x0eAdobe.{7}", b"", content.getvalue(), flags=re.DOTALL)
        page = type("Page", (), {"jpegtables": None, "photometric": {"rgb": 2, "ycbcr": 6}[photometric]})
        assert abs(tiff._jpeg(data, page, (128, 128)).astype(int) - tile).max() < 30
        with pytest.raises(ValueError, match="has 128 x 128 pixels, not 64 x 128"):
            tiff._jpeg(data, page, (128, 64))


def test_what_pillow_has_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = ramp(1)[..., 0]
    tifffile.imwrite(tmp_path / "16.tif", grey.astype(np.uint16), tile=(64, 64))
    tifffile.imwrite(tmp_path / "turned.tif", ramp(3), tile=(64, 64), photometric="rgb", extratags=[(274, 3, 1, 6)])
    tifffile.imwrite(tmp_path / "white.tif", grey, tile=(64, 64), photometric="miniswhite")
    tifffile.imwrite(tmp_path / "planes.tif", ramp(3).transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "a.png").write_text("no image")
    for path in tmp_path.iterdir():
        with open_tiff(path, 40, 1000) as file:
            assert file is None, path
    path = written(tmp_path / "a.tif", "tiles")
    with open_tiff(path, 40, 10**6) as file:
        assert file is None
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with open_tiff(path, 40, 1000) as file:
        assert file is None


def tag_place(content: bytes, code: int) -> tuple[str, int]:
    """The type of a tag of the first page in a classic little-endian file, and where its first value stands."""
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    for n in range(count):
        tag, kind, values, value = struct.unpack_from("<HHII", content, at + 2 + 12 * n)
        if tag == code:
            size = {3: 2, 4: 4}[kind]
            return {3: "<H", 4: "<I"}[kind], (at + 2 + 12 * n + 8 if values * size <= 4 else value)
    raise AssertionError(code)


LIES = {
    "a larger image": ((257, 5000), r"lists 15 tiles, and its 203 x 5000 pixels take 395; write the file again"),
    "smaller tiles": ((323, 16), r"lists 15 tiles, and its 203 x 150 pixels take 50"),
    "a tile outside": ((324, 2**30), r"number 1 of 15 tiles lies beyond the end of the file; restore"),
    "an empty tile": ((325, 0), r"number 1 of 15 tiles has 0 bytes for 48 x 64 pixels; write the file again"),
    "cut off": ((0, 0), r"number \d+ of 15 tiles lies beyond the end of the file; restore"),
    "garbage": ((None, 0), r"number 1 of 15 tiles cannot be decoded \(.*\); restore the file"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_with_lying_tiles_is_one_clear_line(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LARGE", 1000)
    path = written(tmp_path / "a.tif", "tiles")
    content = bytearray(path.read_bytes())
    (code, value), text = LIES[lie]
    if code == 0:
        del content[-3000:]
    elif code is None:
        _, at = tag_place(bytes(content), 324)
        (first,) = struct.unpack_from("<I", content, at)
        content[first : first + 8] = b"\xa5" * 8
    else:
        kind, at = tag_place(bytes(content), code)
        struct.pack_into(kind, content, at, value)
    path.write_bytes(content)
    failures: list[Failure] = []
    assert not list(exact(64, 0.2).images([str(path)], failed=failures.append))
    message = str(failures[0].error)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert re.search(text, message), message


def test_a_cut_strip_that_says_it_is_short_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), rowsperstrip=64, metadata=None)
    content = bytearray(path.read_bytes())
    kind, at = tag_place(bytes(content), 279)
    struct.pack_into(kind, content, at, 10)
    path.write_bytes(content[:-1000])
    with pytest.raises(DataError, match=r"a\.tif: ends before the last of its 64 x 64 pixels"), open_tiff(path, 8, 0):
        pass


def test_tiles_of_a_file_are_predicted_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn(7, (130, 170), 40)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, tile=(32, 48), photometric="rgb", compression="zlib")
    whole = next(exact(64, 0.2).images([image]))
    monkeypatch.setattr(tiles, "LARGE", 1000)
    monkeypatch.setattr(images, "opened", lambda _: pytest.fail("is read by Pillow"))
    found = next(exact(64, 0.2).images([str(path)]))
    assert masks_of(found) == masks_of(whole)
    assert found.image is None
    assert (found.meta.path, found.meta.size, found.meta.image_id) == (str(path), (130, 170), 1)
    monkeypatch.setattr(tiles, "MOST", 20_000)
    with pytest.raises(DataError, match="run lengths count up to 20,000"):
        next(exact(64, 0.2).images([str(path)]))


def test_an_evaluation_does_not_read_it_whole_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = drawn(7, (130, 170), 40)
    Image.fromarray(image).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 48), photometric="rgb", compression="zlib")

    def rows(name: str, size: tuple[int, int] = (130, 170)) -> list[Row]:
        record = Record("slide 7", tmp_path / name, size, [])
        return rows_of(exact(64, 0.2).dataset(Dataset([record], CLASSES, tmp_path, "coco")))

    wanted = rows("a.png")
    monkeypatch.setattr(tiles, "LARGE", 1000)
    monkeypatch.setattr(images, "opened", lambda _: pytest.fail("is read by Pillow"))
    assert rows("a.tif") == wanted
    assert len(wanted) > 3
    assert {row["image_id"] for row in wanted} == {"slide 7"}
    with pytest.raises(DataError, match=r"a\.tif: the annotations say 130 x 170 pixels, the image has 170 x 130"):
        rows("a.tif", (170, 130))


def test_pages_of_a_stack_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, second in (("pyramid.tif", ramp(3)[::2, ::2]), ("stack.tif", ramp(3))):
        said_of_pages.clear()
        with tifffile.TiffWriter(tmp_path / name) as file:
            for pixels in (ramp(3), second):
                file.write(pixels, tile=(64, 64), compression="zlib", photometric="rgb", metadata=None)
        with open_tiff(tmp_path / name, 1, 1) as found:
            assert found is not None
    (message,) = caplog.messages
    assert "stack.tif: has 2 pages, of which the first is read" in message


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_file_beyond_the_limit_of_pillow_is_drawn_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.tif", "tiles")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    monkeypatch.setattr(images, "LARGE", 1000)
    pixels, size = read_reduced(path, lambda _: 1)
    assert size == SIZE
    assert pixels.shape == (75, 102, 3)
    with pytest.raises(DataError, match="too many pixels"):
        read_pixels(path)
    images.allow_megapixels(0.04)
    assert read_pixels(path).shape == (*SIZE, 3)
