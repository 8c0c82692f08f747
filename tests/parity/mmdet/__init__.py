"""Models of mmdetection's zoo, loaded by their own names. Every stored tensor of a case is compared."""

import importlib
import re

import pytest

from tests.parity.goldens import Case

_RUNNERS = {
    "preprocess": "preprocess",
    "solo_": "solo",
    "decoupled_solo_": "solo",
    "solov2_": "solo",
    "yolact_": "yolact",
    "fcos_": "fcos",
    "condinst_": "fcos",
    "boxinst_": "fcos",
    "rtmdet_ins_": "rtmdet_ins",
    "faster_rcnn_": "rcnn",
    "mask_rcnn_": "rcnn",
    "cascade_mask_rcnn_": "rcnn",
    "mask2former_": "mask2former",
}
"""The beginning of a case's name, and the module that runs it."""


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    name = case.path.name
    runners = [module for start, module in _RUNNERS.items() if re.match(start, name)]
    assert len(runners) == 1, f"{name}: no runner is named for it in {__name__}"
    importlib.import_module(f"{__name__}.{runners[0]}").run(case, monkeypatch)
    assert not case.unchecked, f"stored but not compared: {sorted(case.unchecked)}"
