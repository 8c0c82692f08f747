"""`maskkit predict` for a video: its frames with what was found, and COCO results."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskkit.cli.console import progress, wrong_usage
from maskkit.errors import DataError, MaskkitError
from maskkit.terminal import complain, say

if TYPE_CHECKING:
    from maskkit.api import Segmenter
    from maskkit.infer.draw import Style
    from maskkit.infer.predict import Failure
    from maskkit.infer.results import Results
    from maskkit.infer.selection import Selection
    from maskkit.infer.sources import Pixels
    from maskkit.infer.video import Clip, Frame, Video
    from maskkit.prediction import Prediction

_NAMED = 20
"""Largest number of broken frames that are named."""


def clip_of(sources: Sequence[str], track: bool, every: int, start: float, stop: float | None) -> Clip | None:
    """The part of the video to predict; None where the sources are images. Exits with code 2 for a mixture."""
    from maskkit.infer.video import Clip, is_video

    given = track or every > 1 or start > 0 or stop is not None
    videos = [s for s in sources if is_video(s) or (given and Path(s).is_dir())]
    if not videos:
        if given:
            wrong_usage("--track, --every, --start and --stop are for a video, or for one folder of its frames")
        return None
    if len(sources) > 1:
        wrong_usage(f"predict takes one video at a time, and no images beside it; give {videos[0]} alone")
    return Clip(every, start, stop)


def predict_video(
    segmenter: Segmenter,
    source: str,
    out: Path,
    clip: Clip,
    track: bool,
    selection: Selection,
    style: Style,
    score: float,
    batch: int,
) -> int:
    """Predict the frames of a video, write the results and return the exit code."""
    from maskkit.engine.lock import Lock
    from maskkit.infer.results import Results
    from maskkit.infer.video import open_video

    if track and segmenter.task_name in ("semantic", "panoptic"):
        raise MaskkitError("--track follows objects; this model gives every pixel a class, leave --track out")
    video = open_video(source)
    target = out / f"{Path(source).stem if video.sound else Path(video.name.replace(' ', '-')).name}.mp4"
    if video.sound is not None and target.resolve() == video.sound.resolve():
        raise MaskkitError(f"{target}: the result would overwrite the video; choose another --out")
    lock = Lock(out)
    lock.take()
    try:
        settings = {"video": source, "score": score, "track": track, "clip": str(clip)}
        style = style if track else replace(style, colours="class")  # else colours would change from frame to frame
        run = _VideoRun(segmenter, video, target, clip, selection, style, Results(out, settings))
        return run(score, track, batch)
    finally:
        lock.free()


class _VideoRun:
    """One video, from its first frame to the files at the end."""

    def __init__(
        self,
        segmenter: Segmenter,
        video: Video,
        target: Path,
        clip: Clip,
        selection: Selection,
        style: Style,
        results: Results,
    ) -> None:
        self.segmenter, self.video, self.target, self.clip = segmenter, video, target, clip
        self.selection, self.style, self.results = selection, style, results
        self.broken = self.count = 0
        self.tracks: set[int] = set()

    def __call__(self, score: float, track: bool, batch: int) -> int:
        """Predict the frames and return the exit code. After an error or Ctrl-C, the frames so far are written."""
        from maskkit.infer.video_writer import Mp4Writer

        began = time.monotonic()
        writer = Mp4Writer(self.target, self.video.rate / self.clip.every, self.video.sound, self.clip.start)
        try:
            with writer, self.results:
                self._frames(writer, score, track, batch)
        except (KeyboardInterrupt, DataError) as error:
            if self.count:
                self._finish()
                reason = f"{error}; " if isinstance(error, DataError) else "interrupted; "
                error.args = (f"{reason}the first {self.count} frames are in {self.target}",)
            raise
        if not self.count:
            raise DataError(f"{self.video.name}: no frame was read; check the file, --start and --stop")
        self._finish()
        task, seconds = self.segmenter.task, time.monotonic() - began
        tracks = f" in {len(self.tracks)} tracks" if track else ""
        say(
            f"{self.results.rows} {task.noun}{tracks} in {self.count} frames, {self.count / seconds:.1f} frames/s: "
            f"{self.target} and {self.results.folder / 'predictions.json'}"
        )
        if writer.silence:
            complain(f"{self.video.name}: {writer.silence}")
        if self.broken:
            more = f"; the first {_NAMED} are named" if self.broken > _NAMED else ""
            complain(f"{self.broken} frames failed{more}")
        return 1 if self.broken else 0

    def _frames(self, writer: Any, score: float, track: bool, batch: int) -> None:
        from maskkit.infer.pipeline import ahead
        from maskkit.infer.video import follow

        pairs = follow(
            self.segmenter.predictor, self.video, self.clip, self._failed, score=score, track=track, batch=batch
        )
        # reading, the network, drawing and encoding, each in its own thread
        with closing(ahead(self._drawn(ahead(pairs)))) as drawn, progress() as bars:
            began = time.monotonic()
            bar = bars.add_task("predicting", total=self._total())
            for frame, prediction, pixels in drawn:
                writer.add(pixels, frame.seconds)
                self._write(frame, prediction)
                speed = self.count / max(time.monotonic() - began, 1e-9)
                bars.update(bar, advance=1, description=f"predicting, {speed:.1f} frames/s")

    def _drawn(
        self, pairs: Generator[tuple[Frame, Prediction], None, None]
    ) -> Generator[tuple[Frame, Prediction, Pixels], None, None]:
        from maskkit.infer.draw import overlay

        with closing(pairs):
            for frame, found in pairs:
                prediction = self.selection(found)
                pixels = overlay(frame.pixels, prediction, self.style)
                prediction.image = None
                yield frame._replace(pixels=pixels[:0]), prediction, pixels

    def _write(self, frame: Frame, prediction: Prediction) -> None:
        rows = [row | {"frame": frame.number} for row in prediction.to_coco()]
        self.tracks.update(row["track_id"] for row in rows if "track_id" in row)
        meta = replace(prediction.meta, path=self.video.name)
        name = Path(f"{self.target.stem}_{frame.number:06d}.png")  # of files for each frame, as in labels/
        self.results.add(meta, name, rows, frame=frame.number, seconds=round(frame.seconds, 6))
        self.count += 1

    def _failed(self, failure: Failure) -> None:
        self.broken += 1
        if self.broken <= _NAMED:
            complain(failure.error)

    def _total(self) -> int | None:
        """The expected number of predicted frames; None where the file does not say how many it has."""
        if self.video.count is None:
            return None
        rate = float(self.video.rate)
        stop = self.video.count if self.clip.stop is None else min(self.video.count, self.clip.stop * rate)
        return max(1, round((stop - self.clip.start * rate) / self.clip.every))

    def _finish(self) -> None:
        """Write the files of the task, and images.json."""
        from maskkit.eval.rows import StoredRows
        from maskkit.files import write_json

        results = self.results
        rows = StoredRows(lambda: (found for _, found in results.read()), results.rows)
        self.segmenter.task.write_results(results.folder, rows, results.images(), self.segmenter.categories)
        write_json(results.folder / "images.json", results.images())
