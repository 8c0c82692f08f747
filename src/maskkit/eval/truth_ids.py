"""The ids of a ground truth for predictions of loose images: images by file name, classes by name."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskkit.data.dataset import Dataset
from maskkit.errors import DataError
from maskkit.eval.rows import Row, shared_classes, translated
from maskkit.prediction import Categories, ImageId


@dataclass(frozen=True)
class TruthIds:
    """What results need to be measured against a data set."""

    images: Mapping[str, ImageId]
    """The id of each image file, by its path as it was given."""
    classes: Mapping[int, int]
    """From category ids of the model to those of the data; classes that the data lack are not in it."""
    categories: Categories
    """The classes of the data that the model has too."""

    @classmethod
    def of(cls, dataset: Dataset, files: Sequence[Path], model: Categories) -> "TruthIds":
        """The ids in ``dataset`` of ``files`` and of the classes of ``model``.

        An image is the file itself or, where it lies elsewhere, the one of the same name; of several of that name the
        one with most folders in common. Raises `DataError` for files that the data set does not have, for two files
        that are one image of it, and where no class is shared.
        """
        classes, shared = shared_classes(model, dataset)
        images = _image_ids(dataset, files)
        return cls(images, classes, shared.categories)

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows with category ids of the data, without classes that it lacks."""
        return translated(rows, self.classes)


def _image_ids(dataset: Dataset, files: Sequence[Path]) -> dict[str, ImageId]:
    named: defaultdict[str, list[tuple[Path, ImageId]]] = defaultdict(list)
    for record in dataset.records:
        named[record.path.name].append((record.path.resolve(), record.image_id))
    found: dict[str, ImageId] = {}
    missing: list[str] = []
    for file in files:
        shared = [(_shared_folders(file.resolve(), path), image_id) for path, image_id in named[file.name]]
        most = max((n for n, _ in shared), default=0)
        best = [image_id for n, image_id in shared if n == most]
        if len(best) > 1:
            raise DataError(f"{dataset.source}: has {len(best)} images called {file.name}; give {file} with its folder")
        if not best:
            missing.append(str(file))
        else:
            found[str(file)] = best[0]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{dataset.source}: has no image called {', '.join(missing[:3])}{more}; predict images of these data, or "
            "leave --data out"
        )
    twice = [image_id for image_id, n in Counter(found.values()).items() if n > 1]
    if twice:
        same = [file for file, image_id in found.items() if image_id == twice[0]]
        raise DataError(f"{dataset.source}: {' and '.join(same[:2])} are both image {twice[0]} there; give one of them")
    return found


def _shared_folders(a: Path, b: Path) -> int:
    """How many parts two paths share at their end; more than any such number where they are the same file."""
    if a == b:
        return len(a.parts) + len(b.parts)
    pairs = zip(reversed(a.parts), reversed(b.parts), strict=False)
    return next((n for n, (x, y) in enumerate(pairs) if x != y), 0)
