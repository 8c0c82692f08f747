import glob
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin, features

from maskkit.data.files import load_json, matching
from maskkit.data.images import find_images, formats, image_size, list_images, read_image, read_pixels
from maskkit.data.label_map import read_values
from maskkit.data.tiff import said_of_pages
from maskkit.errors import DataError


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_colour_images_come_back_pixel_for_pixel(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), rgb)
    assert image_size(tmp_path / "a.png") == (20, 30)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, rgb, mode):
    pil = Image.fromarray(rgb).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    pil.save(path)
    image = read_image(path)
    assert image.shape == (3, 20, 30)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(pil.convert("RGB")))


def test_cmyk_jpeg_has_the_colours_of_the_rgb_image(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert (read_image(tmp_path / "a.jpg").float() - torch.tensor([200.0, 30, 60])[:, None, None]).abs().max() < 4


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    assert read_image(tmp_path / "a.png")[:, 0, 0].tolist() == [10, 20, 30]


def test_sixteen_bits_are_divided_by_257(tmp_path):
    values = np.array([[0, 128, 129, 257, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 1, 6)
    assert image[0].tolist() == [[0, 0, 1, 1, 100, 255]]
    assert (image == image[:1]).all()


@pytest.mark.parametrize(("dtype", "word"), [(np.int32, "32-bit"), (np.float32, "floating-point")])
def test_values_without_a_known_range_are_refused(tmp_path, dtype, word):
    Image.fromarray(np.full((4, 4), 1e6, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=word):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, orientation, suffix):
    pil = Image.new("RGB", (32, 16), (0, 0, 0))
    pil.paste((255, 255, 255), (0, 0, 8, 8))  # the upper left corner of the stored image is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    pil.save(path, exif=exif)
    image = read_image(path)
    assert tuple(image.shape[1:]) == image_size(path) == ((32, 16) if orientation >= 5 else (16, 32))
    # where that corner goes: (bottom, right) for each orientation of the EXIF standard
    bottom, right = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (0, 1), (1, 1), (1, 0)][orientation - 1]
    assert image[0, -4 if bottom else 3, -4 if right else 3] > 200
    assert image[0, 3 if bottom else -4, 3 if right else -4] < 50


def test_ending_does_not_matter(tmp_path, rgb):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (3, 20, 30)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"just text", "not an image"),
        (_png_header(30_000, 30_000), "too many pixels"),
        (None, "no such image"),
    ],
)
def test_unusable_files_are_named_with_their_reason(tmp_path, read, content, message):
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_images_are_refused(tmp_path, rgb, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.tile(rgb, (8, 8, 1))).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert image_size(path) == (160, 240)  # the header is whole
    with pytest.raises(DataError, match="damaged"):
        read_image(path)


def _turned(path, orientation, size=(24, 40)):
    """An image of ``size`` (H, W) with an orientation, in the format of the suffix; "late.png": behind the pixels."""
    pil = Image.new("RGB", size[::-1], (200, 100, 50))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if path.suffix == ".tif":
        pil.save(path, tiffinfo={274: orientation})
    elif path.name == "late.png":
        pil.save(path)
        content, chunk = path.read_bytes(), exif.tobytes()[6:]
        late = struct.pack(">I", len(chunk)) + b"eXIf" + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
        path.write_bytes(content[:-12] + late + content[-12:])
    elif path.name == "xmp.png":
        text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        pil.save(path, pnginfo=info)
    elif path.name == "raw.png":  # as ImageMagick writes it
        hexed = exif.tobytes().hex()
        info = PngImagePlugin.PngInfo()
        info.add_text("Raw profile type exif", f"\nexif\n{len(hexed) // 2:8d}\n{hexed}\n", zip=True)
        pil.save(path, pnginfo=info)
    else:
        pil.save(path, exif=exif)
    return path


def test_16_bits_whose_white_is_zero(tmp_path):
    values = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 1, 255]
    content = (tmp_path / "a.tif").read_bytes()
    photometric = struct.pack("<HHIH", 262, 3, 1, 1)  # black is zero
    assert content.count(photometric) == 1
    (tmp_path / "a.tif").write_bytes(content.replace(photometric, photometric[:8] + b"\0\0"))
    assert read_pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 254, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_turned_tiffs_of_every_mode_are_upright(tmp_path, mode):
    """Uncompressed ones too, which Pillow would map into memory in the wrong shape."""
    bands = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode)
    values = np.random.default_rng(0).integers(0, 256, (12, 20, bands) if bands else (12, 20), np.uint8)
    image = Image.fromarray(values > 127 if mode == "1" else values.astype(np.uint16) * 257 if "I" in mode else values)
    if mode == "CMYK":
        image = Image.frombytes("CMYK", (20, 12), values.tobytes())
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(tmp_path / "plain.tif")
    plain = read_pixels(tmp_path / "plain.tif")
    upright = {3: plain[::-1, ::-1], 5: plain.swapaxes(0, 1), 6: plain[::-1].swapaxes(0, 1)}
    upright |= {7: plain[::-1, ::-1].swapaxes(0, 1), 8: plain.swapaxes(0, 1)[::-1]}
    for orientation, expected in upright.items():
        image.save(tmp_path / "a.tif", tiffinfo={274: orientation})
        assert image_size(tmp_path / "a.tif") == expected.shape[:2]
        assert np.array_equal(read_pixels(tmp_path / "a.tif"), expected), orientation


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "late.png", "xmp.png", "raw.png", "a.tif", "a.webp", "a.avif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_size_and_pixels_agree_for_every_format_and_orientation(tmp_path, name, orientation):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = _turned(tmp_path / name, orientation)
    expected = (40, 24) if 5 <= orientation <= 8 else (24, 40)
    assert image_size(path) == read_pixels(path).shape[:2] == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["bmp", "gif", "ico", "jp2", "jpg", "late.png", "pgm", "png", "ppm", "tga", "tif", "webp"]),
    orientation=st.integers(0, 10),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_size_and_pixels_agree(tmp_path, kind, orientation, size):
    path = tmp_path / (kind if "." in kind else f"a.{kind}")
    if kind in ("jpg", "late.png", "png", "tif", "webp"):
        _turned(path, orientation, size)
    else:
        Image.new("RGB", size[::-1]).save(path)
    assert image_size(path) == read_pixels(path).shape[:2]


def test_small_values_of_32_bits_are_visible(tmp_path):
    Image.fromarray(np.array([[0, 200, 255]], np.int32)).save(tmp_path / "a.tif")
    assert read_pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 200, 255]


def test_images_that_come_out_black_are_logged_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("maskkit.data.images._warned", [])
    for name in ("a.tif", "b.tif"):
        Image.fromarray(np.full((2, 2), 4000, np.uint16)).save(tmp_path / name)
        read_pixels(tmp_path / name)
    (message,) = (r.getMessage() for r in caplog.records)
    assert "a.tif: 16-bit values of at most 4000" in message
    assert "stretch the values" in message


def test_pages_behind_the_first_one_are_logged_once(tmp_path, caplog):
    said_of_pages.clear()
    pages = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 20, 30)]
    for name in ("a.tif", "b.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], tiffinfo={274: 6})
        assert (read_pixels(tmp_path / name) == 10).all()
        assert read_pixels(tmp_path / name).shape == (6, 4, 3)
    (message,) = (r.getMessage() for r in caplog.records)
    assert "a.tif: has 3 pages, of which the first is read" in message
    said_of_pages.clear()
    pages[0].save(tmp_path / "c.gif", save_all=True, append_images=pages[1:])
    assert read_pixels(tmp_path / "c.gif").max() == 10
    assert "c.gif: has 3 pages" in caplog.messages[-1]
    pages[0].save(tmp_path / "one.tif")
    said_of_pages.clear()
    read_pixels(tmp_path / "one.tif")
    assert len(caplog.records) == 2


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_format_is_opened_that_is_not_named(tmp_path, monkeypatch):
    for source in (Path(__file__).parents[2] / "src").rglob("*.py"):
        for call in re.findall(r"Image\.open\(.*", source.read_text(encoding="utf-8")):
            assert "formats=" in call, source
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    (tmp_path / "cat.png").write_bytes(POSTSCRIPT)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="not an image"):
            read(tmp_path / "cat.png")
    assert {"EPS", "PSD", "WMF"}.isdisjoint(formats())


@pytest.mark.parametrize("read", [read_image, image_size, load_json, lambda path: read_values(path, (2, 2))])
def test_pipes_and_devices_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is a named pipe"):
        read(tmp_path / "a.png")
    with pytest.raises(DataError, match="/dev/zero: is a device"):
        read(Path("/dev/zero"))
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_find_images_sorts_and_leaves_other_files_out(tmp_path, rgb):
    for name in ("b.JPG", "a.png", ".hidden.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "a.json").write_text("{}")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in find_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "c.png"]


def test_images_are_found_by_content_where_the_name_says_nothing(tmp_path, rgb):
    kinds = {
        "a.jfif": "JPEG", "b.mpo": "JPEG", "c.tga": "TGA", "IMG_0005": "JPEG", "frame.0001": "PNG", "d..png": "PNG",
        "e.jpg.png": "PNG", "f.JPEG": "JPEG", "g.unknown": "GIF",
    }  # fmt: skip
    for name, kind in kinds.items():
        Image.fromarray(rgb).save(tmp_path / name, format=kind)
    for name, content in {"README": b"text", "x.dat": b"BM not really", "cat": POSTSCRIPT, "z.cache": b"\xff"}.items():
        (tmp_path / name).write_bytes(content)
    listing = list_images(tmp_path)
    assert {p.name for p in listing.images} == set(kinds)
    assert (listing.left_out, listing.note()) == ([], "")
    assert all(read_pixels(p).shape == (20, 30, 3) for p in listing.images)


def test_files_that_one_would_expect_to_be_read_are_named(tmp_path, rgb):
    for name in (".hidden.png", ".thumbs/t.jpg", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / name)
    for name in ("clip.mp4", "phone.HEIC", "._a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 of another kind")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_images(tmp_path, recursive=True)
    assert [p.name for p in listing.images] == ["a.png"]
    assert [p.name for p in listing.left_out] == [
        ".hidden.png", "t.jpg", "clip.mp4", "gone.jpg", "phone.HEIC", "pipe.png",
    ]  # fmt: skip
    assert listing.note().startswith("6 files are left out, because hidden or of no format that is read: .hidden.png,")
    assert "pipe.png" not in listing.note()  # five are named, and the count says that there are more


def test_every_folder_is_entered_once(tmp_path, rgb):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("data/a.png", "data/sub/b.png", "elsewhere/c.png"):
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "sub" / "up").symlink_to("..")
    (tmp_path / "data" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "twice").symlink_to(tmp_path / "elsewhere")
    names = ["a.png", "b.png", "c.png"]
    assert [p.name for p in find_images(tmp_path / "data", recursive=True)] == names
    for pattern in ("data/**/*.png", "data/**/**/*", "**/*.png"):
        assert sorted(p.name for p in matching(f"{tmp_path}/{pattern}")) == names, pattern
    assert [p.name for p in matching(f"{tmp_path}/d*/**/b.*")] == ["b.png"]
    assert [p.name for p in matching(f"{tmp_path}/data/*.png")] == ["a.png"]


def test_links_to_themselves_and_deep_folders_are_walked(tmp_path, rgb):
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "self.png").symlink_to("self.png")
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):  # deeper than Python's limit of calls; the whole path would be too long for the system
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    Image.fromarray(rgb).save(tmp_path / "d" / "d" / "a.png")
    listing = list_images(tmp_path, recursive=True)
    assert [p.name for p in listing.images] == ["a.png"]
    assert [p.name for p in listing.left_out] == ["self.png"]
    listing.images[0].unlink()
    for depth in range(1200, 0, -1):  # shutil.rmtree, which would clean up, calls itself for every folder
        os.rmdir(tmp_path / ("d/" * depth))


def test_patterns_match_as_those_of_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b/a.png", "b/c/a.png", "b/c/[x].png", ".d/a.png", "b/.a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for pattern in ("**/*.png", "**/a.png", "b/**", "b/**/*", "**/c/*.png", "*/**/*.png", "./**/a.*", "**/[[]x].png"):
        expected = {os.path.normpath(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)}
        assert {os.path.normpath(p) for p in matching(pattern)} == expected, pattern


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot be listed"):
        find_images(tmp_path / "nowhere")
