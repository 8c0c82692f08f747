"""Limits of a run that are known once its data are."""

from dataclasses import replace

import pytest

from maskkit.engine.train import train
from maskkit.errors import MaskkitError


def test_a_batch_that_no_memory_holds(run, tmp_path):
    with pytest.raises(MaskkitError, match=r"--train\.batch 1000000000: must be between 1 and 65536"):
        train(replace(run, train=replace(run.train, batch=10**9, workers=0)), tmp_path / "run")
