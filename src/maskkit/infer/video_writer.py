"""Writing of MP4 files by PyAV (the extra ``maskkit[video]``): H.264, with the sound of another file."""

from __future__ import annotations

import math
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from maskkit.errors import MaskkitError
from maskkit.files import replacing
from maskkit.infer.runtimes import require
from maskkit.infer.sources import Pixels

_CLOCK = 90_000
"""Ticks per second of the times of frames."""
_OLD_CLOCK = 30_000
"""The same for MPEG-4, which stores this number in 16 bits."""


class Mp4Writer:
    """An MP4 file of frames, each with its time; a context manager.

    The file is either complete or absent: it appears at the end of the context, also after an error, if there is a
    frame. Frames with an odd number of rows or columns get one more. ``sound`` is a file whose sound is copied without
    re-encoding, from ``start`` seconds on; if it is not, ``silence`` says why.
    """

    def __init__(self, path: Path, rate: Fraction, sound: Path | None = None, start: float = 0.0) -> None:
        self.path, self.rate, self.start = path, rate, start
        self.silence = ""
        """Why the sound is left out, else empty."""
        self.frames = 0
        self._sound, self._files = sound, ExitStack()
        self._container: Any = None
        self._last = -1

    def __enter__(self) -> Mp4Writer:
        return self

    def add(self, pixels: Pixels, seconds: float) -> None:
        """Write RGB pixels ``(H, W, 3)`` at a time in seconds of the source. Raises `FileError` when it cannot."""
        av = require("av", "video")
        if self._container is None:
            self._open(pixels.shape[0], pixels.shape[1])
        height, width = pixels.shape[:2]
        even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self._last = max(self._last + 1, round((seconds - self.start) * self._clock))
        frame.pts, frame.time_base = self._last, Fraction(1, self._clock)
        self._mux(self._video.encode(frame))
        self._copy_sound(self._last / self._clock)
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        if isinstance(error, OSError) and not isinstance(error, MaskkitError):
            self._files.__exit__(kind, error, trace)  # the disk: what there is, is no file
            return
        with self._files:
            self._mux(self._video.encode(None))
            self._copy_sound((self._last + 1) / self._clock)
            self._container.close()

    def _open(self, height: int, width: int) -> None:
        av = require("av", "video")
        temporary = self._files.enter_context(replacing(self.path))
        self._container = av.open(str(temporary), "w", format="mp4")
        self._files.callback(self._container.close)
        codec, options = _codec()
        self._clock = _CLOCK if codec == "libx264" else _OLD_CLOCK
        self._video = self._container.add_stream(codec, rate=self.rate.limit_denominator(1001), options=options)
        self._video.width, self._video.height, self._video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        self._video.codec_context.time_base = Fraction(1, self._clock)
        self._packets, self._waiting, self._audio, self._heard = iter(()), None, None, -math.inf
        if self._sound is not None:
            self._open_sound(self._sound)

    def _open_sound(self, path: Path) -> None:
        av = require("av", "video")
        source = self._files.enter_context(av.open(str(path), container_options={"protocol_whitelist": "file"}))
        if not source.streams.audio:
            return
        stream, video = source.streams.audio[0], source.streams.video[0]
        if stream.codec_context is None or stream.codec_context.name not in self._container.supported_codecs:
            name = stream.codec_context.name if stream.codec_context is not None else "an unknown codec"
            self.silence = f"the sound ({name}) is left out: MP4 does not hold it"
            return
        self._audio = self._container.add_stream_from_template(stream)
        self._begin = (video.start_time or 0) * video.time_base + Fraction(self.start)
        self._packets = iter(source.demux(stream))

    def _copy_sound(self, until: float) -> None:
        """The packets of the sound up to a time in seconds of the new file."""
        while self._audio is not None:
            packet = self._waiting or next(self._packets, None)
            self._waiting = None
            if packet is None or packet.dts is None:  # the end
                self._audio = None
                return
            time = packet.dts * packet.time_base - self._begin
            if time > until:
                self._waiting = packet
                return
            if time < 0 and self.start > 0:
                continue
            shift = round(self._begin / packet.time_base)
            packet.dts -= shift
            packet.pts = packet.pts - shift if packet.pts is not None else packet.dts
            if packet.dts <= self._heard:  # as in recordings that were joined; MP4 holds times that grow
                self._audio = None
                self.silence = (
                    f"the sound is left out from {self._last / self._clock:.1f} s on: its times go back there"
                )
                return
            self._heard = packet.dts
            packet.stream = self._audio
            self._mux([packet])

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            self._container.mux(packet)


def _codec() -> tuple[str, dict[str, str]]:
    """H.264 if the installed FFmpeg encodes it, else MPEG-4, which every FFmpeg does."""
    av = require("av", "video")
    if "libx264" in av.codecs_available:
        return "libx264", {"preset": "veryfast", "crf": "20"}
    return "mpeg4", {"qscale": "3"}
