"""The results of many images on disk: every image is written as soon as it is predicted, so a run can be continued.

``predictions.jsonl`` has a line with the settings, then a line for each image with its record, its overlay and its
rows. Only names are kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from maskkit.errors import MaskkitError
from maskkit.files import in_file_name, remove_leftovers, replacing
from maskkit.prediction import ImageId, ImageMeta

NAME = "predictions.jsonl"
Record = dict[str, Any]

_MADE_AT_THE_END = ("predictions.json", "images.json", "categories.json", "panoptic.json")
_LONGEST = 150
"""Largest number of bytes of an overlay's name without suffix; file systems limit the length of names."""


class Results:
    """Predictions in ``folder``, which the caller has locked; a context manager.

    With ``resume``, the results of an earlier run with the same ``settings`` are kept; without it, the files of an
    earlier run are removed. Raises `MaskkitError` if the earlier run had other settings, or its file is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], resume: bool = False) -> None:
        self.folder, self.path, self.overlays = folder, folder / NAME, folder / "overlays"
        self.rows = 0
        """Number of rows."""
        self.removed = 0
        """Overlays of an earlier run that were removed."""
        self._done: dict[ImageId, str] = {}
        self._taken: set[str] = set()
        self._file: IO[str] | None = None
        for place in (folder, self.overlays, folder / "labels", folder / "panoptic"):
            remove_leftovers(place)
        if resume and self.path.exists():
            self._continue(settings)
        else:
            self._remove_earlier()
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")

    def __enter__(self) -> Results:
        self._file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._done)

    def has(self, image_id: ImageId, path: str) -> bool:
        """Whether an image is done. Raises `MaskkitError` if another image had its id: then the images have changed."""
        if self._done.get(image_id, path) != path:
            raise MaskkitError(
                f"{self.path}: image {image_id} was {self._done[image_id]}, now it is {path}; give the same images "
                "to continue, or leave --resume out to start again"
            )
        return image_id in self._done

    def overlay_of(self, meta: ImageMeta) -> Path:
        """A file for the overlay of an image; no other image of the run has its name."""
        stem = Path(meta.path).stem
        while len(stem.encode("utf-8", "surrogateescape")) > _LONGEST:
            stem = stem[: len(stem) * 3 // 4]
        name = f"{stem}.jpg"
        while name.lower() in self._taken:
            name = f"{in_file_name(meta.image_id)}-{name}"
        return self.overlays / name

    def add(self, meta: ImageMeta, overlay: Path, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Write the line of an image, after its overlay; ``more`` are further fields of its record."""
        assert self._file is not None
        image = {"id": meta.image_id, "file_name": meta.path, "height": meta.size[0], "width": meta.size[1], **more}
        self._file.write(json.dumps({"image": image, "overlay": overlay.name, "rows": rows}) + "\n")
        self._file.flush()
        self._note(image, overlay.name, rows)

    def read(self) -> Iterator[tuple[Record, list[Record]]]:
        """COCO's image record and the rows of each image, in order."""
        for line in self._lines():
            if "image" in line:
                yield line["image"], line["rows"]

    def images(self) -> Iterator[Record]:
        """COCO's image records, each with the name of its overlay."""
        return (line["image"] | {"overlay": line["overlay"]} for line in self._lines() if "image" in line)

    def foreign(self) -> int:
        """Number of files in the folder of overlays that do not belong to this run."""
        return (
            sum(p.name.lower() not in self._taken for p in self.overlays.glob("*.*")) if self.overlays.is_dir() else 0
        )

    def _note(self, image: Mapping[str, Any], overlay: str, rows: Sequence[object]) -> None:
        self._done[image["id"]] = image["file_name"]
        self._taken.add(overlay.lower())
        self.rows += len(rows)

    def _lines(self) -> Iterator[Record]:
        with open(self.path, encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                try:
                    yield json.loads(text)
                except ValueError as error:
                    raise MaskkitError(
                        f"{self.path}, line {number}: is damaged ({error}); run the same command with --resume"
                    ) from None

    def _continue(self, settings: Mapping[str, Any]) -> None:
        """Keep the complete lines: a killed process may leave part of a line."""
        complete = 0
        with open(self.path, "rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    break
                try:
                    line = json.loads(text)
                    if number == 1:
                        compare_settings(self.path, line["settings"], settings)
                    else:
                        self._note(line["image"], line["overlay"], line["rows"])
                except (ValueError, KeyError, TypeError) as error:
                    raise MaskkitError(
                        f"{self.path}, line {number}: is damaged ({error}); leave --resume out to start again"
                    ) from None
                complete += len(text)
        if not complete:
            raise MaskkitError(f"{self.path}: has no complete line; leave --resume out to start again")
        with open(self.path, "rb+") as file:
            file.truncate(complete)

    def _remove_earlier(self) -> None:
        """Remove what an earlier run made here, and nothing else."""
        if not self.path.exists():
            return
        try:
            lines = list(self._overlays_before())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MaskkitError(f"{self.path}: is not a file of maskkit predict; choose another --out") from None
        for overlay in lines:
            if Path(overlay).name == overlay:
                stem = Path(overlay).stem
                self.removed += (self.overlays / overlay).exists()
                (self.overlays / overlay).unlink(missing_ok=True)
                for kind in ("labels", "panoptic"):
                    (self.folder / kind / f"{stem}.png").unlink(missing_ok=True)
        for name in _MADE_AT_THE_END:
            (self.folder / name).unlink(missing_ok=True)
        self.path.unlink()

    def _overlays_before(self) -> Iterator[str]:
        with open(self.path, "rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                line = json.loads(text)
                if number == 1:
                    _ = line["settings"]
                else:
                    yield str(line["overlay"])


def compare_settings(path: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `MaskkitError` if the run to be continued had other settings; ``path`` is the file with those."""
    now = json.loads(json.dumps(now))
    for name in (n for n in (*now, *before) if before.get(n) != now.get(n)):
        raise MaskkitError(
            f"{path}: was made with {name} {before.get(name)}, not {now.get(name)}; give the same options to "
            "go on, or leave --resume out to start again"
        )
