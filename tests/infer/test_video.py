"""Videos of drawn shapes: reading, tracking, writing, and the command, with a detector that is never wrong."""

import gc
import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from maskkit import api, cli
from maskkit.config import InputConfig
from maskkit.decode import LabelMap, OverInput
from maskkit.errors import DataError, MaskkitError
from maskkit.infer.pipeline import ahead
from maskkit.infer.predict import Failure, Predictor
from maskkit.infer.video import Clip, Frame, Video, follow, natural, open_video
from maskkit.infer.video_writer import Mp4Writer
from maskkit.prediction import Categories
from tests.infer.test_tiles import Colours

av = pytest.importorskip("av")

SIZE = (48, 64)
MOST = 8


@dataclass
class Bright:
    """A runtime that finds the connected parts of red and of green."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        n, _, height, width = images.shape
        shapes = {"boxes": (n, MOST, 4), "labels": (n, MOST), "scores": (n, MOST), "masks": (n, MOST, height, width)}
        out = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for i, image in enumerate(images):
            k = 0
            for label in (0, 1):
                parts, _ = ndimage.label((image[label] > 128) & (image[1 - label] < 128))
                for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
                    corners = columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
                    out["boxes"][i, k], out["labels"][i, k], out["scores"][i, k] = corners, label, 0.9
                    out["masks"][i, k] = parts == number
                    k += 1
        return out | {"mask_scores": out["scores"]}


def segmenter(size: tuple[int, int] = SIZE) -> api.Segmenter:
    input = InputConfig(size=size, resize="stretch", mean=(0, 0, 0), std=(1, 1, 1))
    return api.Segmenter(Predictor(Bright(), OverInput(), input, Categories.of(["red", "green"])), "instance")


def drawn(t: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A red square that moves to the right, and a green one that moves to the left below it."""
    image = np.full((*size, 3), 30, np.uint8)
    image[8:18, 4 + t : 14 + t] = 220, 20, 20
    image[28:40, size[1] - 16 - t : size[1] - 4 - t] = 20, 200, 20
    return image


def write(
    path: Path,
    frames: list[np.ndarray],
    times: list[int] | None = None,
    sound: str = "",
    turn: int = 0,
    mirror: bool = False,
    **stream: str,
) -> Path:
    """A video with 20 frames per second, or with frames at ``times`` in milliseconds."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(stream.get("codec", "libx264"), rate=20, options={"g": "5"})
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = stream.get("pixels", "yuv420p")
        video.codec_context.time_base = Fraction(1, 1000)
        if turn or mirror:
            video.set_display_rotation(turn, hflip=mirror)
        audio = container.add_stream(sound, rate=48_000, layout="mono") if sound else None
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times[n] if times else 50 * n), Fraction(1, 1000)
            container.mux(video.encode(frame))
            if audio is not None:
                tone = av.AudioFrame.from_ndarray(np.full((1, 2400), 0.1 * (n % 2), np.float32), "fltp", "mono")
                tone.sample_rate, tone.pts, tone.time_base = 48_000, 2400 * n, Fraction(1, 48_000)
                container.mux(audio.encode(tone))
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))
    return path


def read(path: Path, clip: Clip = Clip()) -> tuple[list[Frame], list[Failure]]:  # noqa: B008 (frozen)
    failures: list[Failure] = []
    return list(open_video(path).frames(clip, failures.append)), failures


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write(tmp_path / "clip.mp4", [drawn(t) for t in range(20)])


def command(monkeypatch: pytest.MonkeyPatch, *args: object, model: api.Segmenter | None = None) -> int:
    monkeypatch.setattr(api, "load", lambda *_: model or segmenter())
    return cli.main(["predict", *map(str, args)])


def test_frames_have_their_number_time_and_pixels(clip: Path) -> None:
    frames, failures = read(clip)
    assert [f.number for f in frames] == list(range(20))
    assert [round(f.seconds, 3) for f in frames] == [round(0.05 * n, 3) for n in range(20)]
    assert abs(frames[7].pixels.astype(int) - drawn(7)).mean() < 8
    assert not failures
    assert open_video(clip).count == 20
    assert [f.number for f in read(clip, Clip(3, 0.25, 0.7))[0]] == [5, 8, 11]
    with pytest.raises(MaskkitError, match="no frame lies between"):
        Clip(start=2, stop=1)


def test_pixels_are_freed_without_the_garbage_collector(clip: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        assert len(read(clip)[0]) == 20
        left = [f for f in gc.get_objects() if isinstance(f, av.VideoFrame) and f.width > 2]
    finally:
        gc.enable()
    assert not left


def test_frames_of_variable_rate_keep_their_times(tmp_path: Path) -> None:
    times = [0, 40, 100, 110, 400, 1000]
    path = write(tmp_path / "v.mp4", [drawn(t) for t in range(6)], times)
    assert [round(1000 * f.seconds) for f in read(path)[0]] == times
    with Mp4Writer(tmp_path / "new.mp4", open_video(path).rate, path) as writer:
        for frame in read(path)[0]:
            writer.add(frame.pixels, frame.seconds)
    assert [round(1000 * f.seconds) for f in read(tmp_path / "new.mp4")[0]] == times


def test_frames_of_a_phone_are_turned_upright(tmp_path: Path) -> None:
    """A phone held upright writes the frame lying on its side, with the turn that a player makes."""
    lying = [np.ascontiguousarray(np.rot90(drawn(t))) for t in range(3)]  # a quarter against the clock
    (frame, *_), _ = read(write(tmp_path / "phone.mp4", lying, turn=-90))
    assert frame.pixels.shape == (*SIZE, 3)
    assert abs(frame.pixels.astype(int) - drawn(0)).mean() < 8


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_frames_of_a_front_camera_are_mirrored(tmp_path: Path, turn: int) -> None:
    lying = [np.ascontiguousarray(np.rot90(drawn(t)[:, ::-1], -turn // 90)) for t in range(3)]
    (frame, *_), _ = read(write(tmp_path / "selfie.mp4", lying, turn=turn, mirror=True))
    assert frame.pixels.shape == (*SIZE, 3)
    assert abs(frame.pixels.astype(int) - drawn(0)).mean() < 8


def test_a_folder_is_a_video_in_the_natural_order(tmp_path: Path) -> None:
    assert sorted(["f10.png", "f9.png", "a.png", "f1.png"], key=natural) == ["a.png", "f1.png", "f9.png", "f10.png"]
    for n in range(12):
        Image.fromarray(drawn(n)).save(tmp_path / f"{n}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    Image.fromarray(drawn(4)[:20]).save(tmp_path / "4.png")
    frames, failures = read(tmp_path)
    assert [f.number for f in frames] == [0, 1, 2, *range(5, 12)]
    assert np.array_equal(frames[-1].pixels, drawn(11))
    assert [Path(f.path).name for f in failures] == ["3.png", "4.png"]
    assert "64 x 20 pixels, the first frame 64 x 48" in str(failures[1].error)
    rest = open_video(tmp_path).frames(Clip(), failures.append)
    next(rest)
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    with pytest.raises(DataError, match="has vanished before frame 1"):
        next(rest)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63)])
def test_odd_sizes_are_written(tmp_path: Path, size: tuple[int, int]) -> None:
    with Mp4Writer(tmp_path / "x.mp4", Fraction(20)) as writer:
        for n in range(3):
            writer.add(drawn(n, size), n / 20)
    frames, _ = read(tmp_path / "x.mp4")
    assert [f.pixels.shape for f in frames] == [(48, 64, 3)] * 3
    assert abs(frames[1].pixels[: size[0], : size[1]].astype(int) - drawn(1, size)).mean() < 8


@pytest.mark.parametrize(
    ("suffix", "codec", "kept"), [("mp4", "aac", True), ("mkv", "aac", True), ("mov", "pcm_mulaw", False)]
)
def test_sound_is_copied_where_mp4_holds_it(tmp_path: Path, suffix: str, codec: str, kept: bool) -> None:
    path = write(tmp_path / f"s.{suffix}", [drawn(n) for n in range(30)], sound=codec)
    for start in (0.0, 0.5):
        with Mp4Writer(tmp_path / "new.mp4", Fraction(20), path, start) as writer:
            for frame in read(path, Clip(start=start))[0]:
                writer.add(frame.pixels, frame.seconds)
        assert bool(writer.silence) is not kept
        with av.open(str(tmp_path / "new.mp4")) as container:
            assert len(container.streams.audio) == kept
            if kept:
                samples = sum(frame.samples for frame in container.decode(audio=0))
                assert abs(samples / 48_000 - (1.5 - start)) < 0.08


def damage(path: Path, number: int, first: int, count: int) -> None:
    """Overwrite bytes of the packet with that number."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]
    content, (start, size) = bytearray(path.read_bytes()), places[number]
    count = min(count, size - first)
    content[start + first : start + first + count] = b"\xa5" * count
    path.write_bytes(content)


def test_broken_frames_are_named_and_skipped(tmp_path: Path, capsys, monkeypatch) -> None:
    path = write(tmp_path / "b.mov", [drawn(n) for n in range(12)], codec="png", pixels="rgb24")
    damage(path, 5, 20, 60)
    frames, failures = read(path)
    assert [f.number for f in frames] == [0, 1, 2, 3, 4, *range(6, 12)]
    assert len(failures) == 1
    assert "b.mov, frame 5: cannot be decoded" in str(failures[0].error)
    assert command(monkeypatch, path, "--out", tmp_path / "out") == 1
    assert "frame 5: cannot be decoded" in capsys.readouterr().err
    assert len(read(tmp_path / "out" / "b.mp4")[0]) == 11
    with pytest.raises(DataError, match="frame 5"):
        list(segmenter().predict_video(path))


def test_frames_keep_their_numbers_where_the_decoder_reorders_them(tmp_path: Path) -> None:
    """In H.264 a packet is decoded before the frames that are shown before it; some of them are lost with it."""
    path = write(tmp_path / "b.mp4", [drawn(n) for n in range(20)])
    damage(path, 6, 4, 40)
    frames, failures = read(path)
    assert len(failures) in (1, 2, 3, 4)
    assert len(frames) + len(failures) == 20
    assert [round(20 * f.seconds) for f in frames] == [f.number for f in frames]


def test_what_is_no_video_is_one_clear_line(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_bytes(b"no video " * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1/a.ts\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=48_000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
        tone.sample_rate = 48_000
        container.mux(audio.encode(tone))
        container.mux(audio.encode(None))
    (tmp_path / "none").mkdir()
    texts = {
        "empty.mp4": "is empty",
        "text.mp4": "is no video",
        "list.mp4": "is no video",
        "sound.mp4": "has no video stream, only sound",
        "gone.mp4": "there is no such video",
        "none": "contains no image",
    }
    for name, text in texts.items():
        assert command(monkeypatch, tmp_path / name, "--track", "--out", tmp_path / "out") == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert text in line, line
        assert name in line
    assert command(monkeypatch, "0", "--out", tmp_path / "out") == 1
    assert "camera 0" in capsys.readouterr().err


def test_a_cut_file_gives_what_it_has(tmp_path: Path, clip: Path, capsys, monkeypatch) -> None:
    path = write(
        tmp_path / "cut.mkv", [np.random.default_rng(n).integers(0, 255, (*SIZE, 3), np.uint8) for n in range(20)]
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 3 < len(read(path)[0]) < 20
    with (
        av.open(str(tmp_path / "cut.mp4"), "w", options={"movflags": "faststart"}) as container,
        av.open(str(clip)) as old,
    ):
        stream = container.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    whole = tmp_path / "cut.mp4"
    assert read(whole)[1] == []
    whole.write_bytes(whole.read_bytes()[: -whole.stat().st_size // 4])
    frames, failures = read(whole)
    assert 3 < len(frames) < 20
    assert "its header says 20: it is cut off" in str(failures[-1].error)
    assert command(monkeypatch, clip, "--start", 30, "--out", tmp_path / "out") == 1
    assert "no frame was read" in capsys.readouterr().err


def test_joined_recordings_go_on(tmp_path: Path) -> None:
    """Their clock begins again, which neither MP4 nor --start can hold."""
    part = write(tmp_path / "part.ts", [drawn(t) for t in range(6)], sound="aac")
    both = tmp_path / "both.ts"
    both.write_bytes(2 * part.read_bytes())
    assert [frame.seconds for frame in read(both)[0]] == pytest.approx([0.05 * n for n in range(12)])
    assert len(read(both, Clip(start=0.25))[0]) == 7
    video = open_video(both)
    with Mp4Writer(tmp_path / "new.mp4", video.rate, video.sound) as writer:
        for frame in video.frames(Clip(), print):
            writer.add(frame.pixels, frame.seconds)
    assert len(read(tmp_path / "new.mp4")[0]) == 12
    assert "its times go back there" in writer.silence


def test_wrong_usage(tmp_path: Path, clip: Path, monkeypatch) -> None:
    for args in ([clip, clip], [clip, "a.jpg"], ["a.jpg", "--track"], [clip, "--resume"], [clip, "--every", 0]):
        with pytest.raises(SystemExit) as left:
            command(monkeypatch, *args, "--out", tmp_path / "out")
        assert left.value.code == 2
    assert command(monkeypatch, clip, "--out", clip.parent) == 1
    assert len(read(clip)[0]) == 20


def test_the_command_writes_video_and_rows(tmp_path: Path, clip: Path, capsys, monkeypatch) -> None:
    assert command(monkeypatch, clip, "--track", "--every", 2, "--stop", 0.8, "--out", tmp_path / "out") == 0
    assert "16 objects in 2 tracks in 8 frames" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["frame"] for row in rows] == sorted([*range(0, 16, 2)] * 2)
    assert {(row["category_id"], row["track_id"]) for row in rows} in ({(1, 1), (2, 2)}, {(1, 2), (2, 1)})
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [(i["id"], i["frame"], i["seconds"]) for i in images] == [(n, n, n / 20) for n in range(0, 16, 2)]
    frames, _ = read(tmp_path / "out" / "clip.mp4")
    assert [round(f.seconds, 3) for f in frames] == [round(0.1 * n, 3) for n in range(8)]
    assert abs(frames[3].pixels.astype(int) - drawn(6)).mean() > 4  # something is drawn


def test_label_maps_give_videos_too(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for n in range(3):
        image = np.zeros((*SIZE, 3), np.uint8)
        image[10:20, n : n + 9, 0] = 100
        Image.fromarray(image).save(folder / f"{n}.png")
    input = InputConfig(size=SIZE, resize="stretch", mean=(0, 0, 0), std=(1, 1, 1))
    model = api.Segmenter(Predictor(Colours(), LabelMap(), input, Categories.of(["back", "red", "green"])), "semantic")
    assert command(monkeypatch, folder, "--stop", 9, "--out", tmp_path / "out", model=model) == 0
    assert len(read(tmp_path / "out" / "frames.mp4")[0]) == 3
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 3
    assert command(monkeypatch, folder, "--track", "--out", tmp_path / "out", model=model) == 1
    assert "leave --track out" in capsys.readouterr().err


def test_tiles_and_batches_give_the_same_tracks(clip: Path) -> None:
    plain = [p.to_coco() for p in segmenter().predict_video(clip, track=True)]
    batches = [p.to_coco() for p in segmenter().predict_video(clip, track=True, batch=4)]
    tiles = [p.to_coco() for p in segmenter((40, 40)).with_tiles(40).predict_video(clip, track=True)]
    assert batches == plain
    assert [{row["track_id"] for row in rows} for rows in tiles] == [{1, 2}] * 20
    assert [row["image_id"] for rows in plain for row in rows] == sorted([*range(20)] * 2)


def test_few_frames_are_in_memory(tmp_path: Path) -> None:
    """Of a long folder no more frames are read than the queues hold, while each one is predicted."""
    numbers: list[int] = []

    class Long(Video):
        name, rate = "long", Fraction(20)

        def frames(self, clip: Clip, failed: object) -> Generator[Frame, None, None]:
            for n in range(300):
                numbers.append(n)
                yield Frame(n, n / 20, drawn(n % 30))

    pairs = follow(segmenter().predictor, Long(), Clip(), lambda _: None, score=0.5, track=True)
    furthest = 0
    for frame, found in pairs:
        assert found.instances is not None
        furthest = max(furthest, numbers[-1] - frame.number)
    assert numbers[-1] == 299
    assert furthest <= 10


def test_a_thread_ends_with_its_reader() -> None:
    def made(fails: bool = False) -> Iterator[int]:
        yield from range(5)
        if fails:
            raise DataError("the end")
        yield from range(5, 100)

    assert list(ahead(made(), 2)) == list(range(100))
    before = threading.active_count()
    some = ahead(made(), 2)
    assert next(some) == 0
    some.close()
    assert threading.active_count() == before
    with pytest.raises(DataError, match="the end"):
        list(ahead(made(True), 2))


def test_without_av_the_extra_is_named(clip: Path, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MaskkitError, match=r"pip install 'maskkit\[video\]'"):
        open_video(clip)
