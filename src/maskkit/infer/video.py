"""Frames of a video: of a file, of a folder of images, of a camera. Prediction and tracking frame by frame.

PyAV (the extra ``maskkit[video]``), which is imported when it is needed, reads files and cameras. Reading, the network
and the caller run concurrently, in threads with short queues between them (`maskkit.infer.pipeline.ahead`), so memory
does not grow with the length of the video.
"""

from __future__ import annotations

import math
import re
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskkit.config import InputConfig
from maskkit.data.images import list_images
from maskkit.errors import DataError, MaskkitError
from maskkit.files import require_file
from maskkit.infer.pipeline import ahead
from maskkit.infer.predict import Failure, Predictor
from maskkit.infer.runtimes import require
from maskkit.infer.sources import Item, Pixels, read_source
from maskkit.infer.track import LOW, Tracker
from maskkit.prediction import ImageMeta, Prediction

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv")
"""Suffixes of video files, in lower case."""
FOLDER_RATE = Fraction(25)
"""Frames per second of a folder of images."""
_MOST_OF = 0.9
"""Share of the frames that an MP4 file states, below which it is cut off."""

Failed = Callable[[Failure], None]


class Frame(NamedTuple):
    """One frame, upright."""

    number: int
    """Its position in the whole video, from 0."""
    seconds: float
    """Time since the beginning of the video."""
    pixels: Pixels


@dataclass(frozen=True)
class Clip:
    """Which frames of a video are predicted. Raises `MaskkitError` if there can be none."""

    every: int = 1
    """Every n-th frame, beginning with the first."""
    start: float = 0.0
    """Time of the first frame, in seconds."""
    stop: float | None = None
    """Time of the first frame that is left out, in seconds; None is the end of the video."""

    def __post_init__(self) -> None:
        if self.every < 1 or not self.start >= 0 or (self.stop is not None and not self.stop > self.start):
            raise MaskkitError(
                f"no frame lies between {self.start:g} and {self.stop} s in steps of {self.every}; give a stop after "
                "the start, and a step of at least 1"
            )


class _Unread(NamedTuple):
    """A frame that has not been read yet."""

    number: int
    seconds: float
    path: str
    """The file that it is in."""
    name: str
    """Its name in messages."""
    read: Callable[[], Pixels]
    """Raises `DataError`."""


class Video(ABC):
    """A source of frames, all of one size."""

    name: str
    """Its name in messages."""
    rate: Fraction
    """Frames per second, the mean where they vary."""
    count: int | None = None
    """Number of frames as the file states it; None where it does not."""
    sound: Path | None = None
    """The file whose sound belongs to the frames."""

    @abstractmethod
    def frames(self, clip: Clip, failed: Failed) -> Generator[Frame, None, None]:
        """The frames of ``clip`` in order; ``failed`` gets each one that cannot be read or has another size."""


def is_video(source: str) -> bool:
    """Whether the name of a source is that of a video file, or the number of a camera."""
    path = Path(source)
    return is_camera(source) or (path.suffix.lower() in SUFFIXES and not path.is_dir())


def is_camera(source: str) -> bool:
    """Whether the name of a source is the number of a camera."""
    return source.isdecimal() and not Path(source).exists()


def open_video(source: str | Path | int) -> Video:
    """A video file, a folder of frames in the natural order of their names, or a camera by its number.

    Raises `DataError` for a source that is none of these or cannot be opened, `MaskkitError` if PyAV is not installed.
    """
    if isinstance(source, int) or is_camera(str(source)):
        return _Stream(f"camera {source}", partial(_camera, int(str(source))))
    path = Path(source)
    return _Folder(path) if path.is_dir() else _Stream(str(path), partial(_file, path), path)


class _Stream(Video):
    """The first video stream of a file or a device."""

    def __init__(self, name: str, open: Callable[[], Any], file: Path | None = None) -> None:
        self.name, self._open, self.sound = name, open, file
        with self._stream() as (_, stream):
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or FOLDER_RATE)
            if file is not None:
                length = float(stream.duration * stream.time_base) if stream.duration else 0.0
                self.count = stream.frames or round(length * self.rate) or None

    def frames(self, clip: Clip, failed: Failed) -> Generator[Frame, None, None]:
        """See `Video.frames`."""
        return _read(self._all(failed), clip, failed)

    def _all(self, failed: Failed) -> Generator[_Unread, None, None]:
        with self._stream() as (container, stream):
            begin, step = float((stream.start_time or 0) * stream.time_base), 1 / float(self.rate)
            latest, packets = -step, 0

            def demuxed() -> Iterator[Any]:
                nonlocal packets
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    yield packet

            for number, decoded in _decoded(demuxed(), stream):
                name = f"{self.name}, frame {number}"
                if isinstance(decoded, str):
                    failed(Failure(self.name, DataError(f"{name}: {decoded}")))
                    continue
                seconds = latest + step if decoded.time is None else round(decoded.time - begin, 6)
                if seconds < latest:  # the clock begins again, as in recordings that were joined
                    begin -= latest + step - seconds
                    seconds = latest + step
                latest = seconds
                yield _Unread(number, seconds, self.name, name, partial(_upright, decoded))
            if "mp4" in container.format.name and packets < _MOST_OF * stream.frames:  # other headers do not count them
                lack = f"ends after {packets} frames, its header says {stream.frames}: it is cut off; restore it"
                failed(Failure(self.name, DataError(f"{self.name}: {lack}")))

    @contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        """The open container and its first video stream that is not a cover image. Raises `DataError`."""
        av = require("av", "video")
        with self._open() as container:
            covers = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & covers]
            if not streams or not streams[0].codec_context:
                kind = "only sound" if container.streams.audio else "nothing that can be decoded"
                raise DataError(f"{self.name}: has no video stream, {kind}; give a file with one")
            streams[0].thread_type = "SLICE"  # not several frames at a time: then errors would not belong to a frame
            yield container, streams[0]


class _Folder(Video):
    """A folder of images, each of which is a frame."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder, self.rate = str(folder), folder, FOLDER_RATE
        self.paths = sorted(list_images(folder).images, key=lambda path: natural(path.name))
        self.count = len(self.paths)
        if not self.paths:
            raise DataError(f"{folder}: contains no image; give a folder of frames, or a video file")

    def frames(self, clip: Clip, failed: Failed) -> Generator[Frame, None, None]:
        """See `Video.frames`."""
        return _read(self._all(), clip, failed)

    def _all(self) -> Generator[_Unread, None, None]:
        for number, path in enumerate(self.paths):
            if not self.folder.is_dir():  # not a fault of each frame
                raise DataError(f"{self.folder}: has vanished before frame {number}; restore it")
            yield _Unread(number, number / float(self.rate), str(path), str(path), partial(_pixels, path))


def _read(found: Generator[_Unread, None, None], clip: Clip, failed: Failed) -> Generator[Frame, None, None]:
    """The frames of ``clip`` among all that are ``found``; ``failed`` gets those that cannot be given."""
    size, taken = None, 0
    with closing(found):
        for frame in found:
            if clip.stop is not None and frame.seconds >= clip.stop:
                return
            if frame.seconds < clip.start:
                continue
            taken += 1
            if (taken - 1) % clip.every:
                continue
            try:
                pixels = frame.read()
                size = size or pixels.shape
                if pixels.shape != size:
                    raise DataError(f"{frame.name}: {_other_size(pixels, size)}")
            except DataError as error:
                failed(Failure(frame.path, error))
                continue
            yield Frame(frame.number, frame.seconds, pixels)


def _pixels(file: Path) -> Pixels:
    return read_source(file)[0]


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people do: 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name) if part]


def follow(
    predictor: Predictor,
    video: Video,
    clip: Clip,
    failed: Failed,
    *,
    score: float,
    track: bool = False,
    batch: int = 1,
) -> Generator[tuple[Frame, Prediction], None, None]:
    """Each frame and its prediction, whose image id is the number of the frame and which has its pixels.

    Objects with a score up to ``score`` are left out. With ``track`` they have ``track_ids`` (`Tracker`), and objects
    from a third of ``score`` on are used to continue tracks. A track that is not seen for a second ends.
    """
    tracker = Tracker(score, max(2, round(video.rate / clip.every))) if track else None
    waiting: deque[Frame] = deque()

    def items(frames: Iterable[Frame]) -> Iterator[Item]:
        for frame in frames:
            waiting.append(frame)
            yield Item(f"{video.name}, frame {frame.number}", partial(_given, frame))

    least = LOW * score if track else score
    # closed in this order: first who takes frames, then who reads them
    with (
        closing(ahead(video.frames(clip, failed))) as read,
        closing(predictor.predict(items(read), batch=batch, workers=1, score=least)) as found,
    ):
        for prediction in found:
            yield waiting.popleft(), prediction if tracker is None else tracker(prediction)


def _given(frame: Frame, input: InputConfig | None) -> tuple[Pixels, ImageMeta]:
    size = (frame.pixels.shape[0], frame.pixels.shape[1])
    return frame.pixels, ImageMeta(frame.number, "", size, size)


def _file(path: Path) -> Any:
    av = require("av", "video")
    require_file(path, "video")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes); restore it or remove it")
    try:  # a playlist must not make it open other files or addresses
        return av.open(str(path), container_options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: is no video that can be read ({reason}); restore it, or convert it to MP4") from None


def _camera(number: int) -> Any:
    av = require("av", "video")
    kinds = {"linux": ("v4l2", f"/dev/video{number}"), "darwin": ("avfoundation", str(number))}
    kind, device = kinds.get(sys.platform, ("", ""))
    if kind not in av.formats_available:
        raise DataError(
            f"camera {number}: the installed PyAV opens no cameras on {sys.platform}; record a file, or install a PyAV "
            "that was built with the system's FFmpeg (pip install av --no-binary av)"
        )
    try:
        return av.open(device, format=kind)
    except av.FFmpegError as error:
        raise DataError(f"camera {number}: cannot be opened ({error.strerror}); check that it is plugged in") from None


def _decoded(packets: Iterator[Any], stream: Any) -> Iterator[tuple[int, Any]]:
    """The frames of a stream's packets with their numbers; for a lost frame its number and a text that says why.

    Decoders return frames in the order of their times. So the frame of a packet is lost when a frame with a later time
    comes out. Some packets have no frame by design; they are skipped as long as there was no error.
    """
    av = require("av", "video")
    waiting: list[int] = []  # a heap: times of packets whose frames have not come out
    latest: int | None = None
    number, reason, is_over = 0, "", False
    while not is_over:
        frames: list[Any] = []
        packet = None
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:  # the rest of the file cannot be split into packets
            reason = f"cannot be read ({error.strerror})"
        try:
            is_over = packet is None or packet.size == 0
            if packet is not None and packet.pts is not None and not packet.is_discard:
                heappush(waiting, packet.pts)
            frames = stream.decode(packet)
        except av.EOFError:
            pass
        except av.FFmpegError as error:
            reason = f"cannot be decoded ({error.strerror}); it is skipped"
            if packet is not None and packet.pts is None:
                yield number, reason
                number += 1
        for frame in frames:
            if reason and latest is not None and frame.pts is not None and frame.pts <= latest:
                continue  # late, after an error: it was reported as lost
            while waiting and frame.pts is not None and waiting[0] < frame.pts:
                heappop(waiting)
                if reason:
                    yield number, reason
                    number += 1
            if waiting and waiting[0] == frame.pts:
                heappop(waiting)
            latest = frame.pts
            yield number, "is damaged; it is skipped" if frame.is_corrupt else frame
            number += 1
    if reason:
        yield from ((number + i, reason) for i in range(len(waiting)))


def _upright(decoded: Any) -> Pixels:
    """The pixels of a decoded frame, mirrored and turned as the file says, to the nearest quarter turn."""
    pixels, degrees = decoded.to_ndarray(format="rgb24"), decoded.rotation
    # a frame whose side data was read refers to itself, so that its pixels would wait for the garbage collector
    small = decoded.reformat(width=2, height=2, interpolation="POINT")
    if (matrix := small.side_data.get("DISPLAYMATRIX")) is not None:  # a, b, u, c, d, ...: (x, y) at (ax+cy, bx+dy)
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if a * d < b * c:  # mirrored: the rotation has no meaning, but what is left once the columns are reversed has
            pixels, degrees = pixels[:, ::-1], -math.degrees(math.atan2(-b, -a))
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90) % 4))


def _other_size(pixels: Pixels, size: tuple[int, ...]) -> str:
    height, width = pixels.shape[:2]
    return f"has {width} x {height} pixels, the first frame {size[1]} x {size[0]}; it is skipped"
