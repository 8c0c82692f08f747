"""What a task opens of a data set."""

from pathlib import Path

import pytest

from maskkit.errors import DataError
from maskkit.eval.task import TASKS
from tests.data.written import object_row, write_coco


def test_the_split_that_is_opened(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_coco(tmp_path / "both" / "annotations" / f"instances_{split}.json", [object_row(1)])
    alone = write_coco(tmp_path / "alone" / "annotations.json", [object_row(1)])
    task = TASKS["instance"]
    for images in (True, False):
        assert task.open(tmp_path / "both", "val", images=images).source.name == "instances_val.json"
        assert task.open(tmp_path / "both", "val", "train", images=images).source.name == "instances_train.json"
        assert len(task.open(alone, "val", images=images)) == 2
    with pytest.raises(DataError, match="has no test split"):
        task.open(tmp_path / "both", "val", "test")
