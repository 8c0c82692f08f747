import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from maskkit.data.images import find_images, image_size, read_image
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


def test_find_images_sorts_and_leaves_other_files_out(tmp_path, rgb):
    for name in ("b.JPG", "a.png", ".hidden.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / name)
    (tmp_path / "a.json").write_text("{}")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in find_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "c.png"]
