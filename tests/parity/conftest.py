"""Collects the golden cases: the few that the project carries, and a whole folder where there is one."""

from pathlib import Path

import pytest

from tests.parity.goldens import find_cases

_HERE = Path(__file__).parent
_METHODS = {p.stem for p in _HERE.glob("*.py")} - {"conftest", "goldens", "semantic", "test_goldens", "__init__"}

_OPEN = {"deeplabv3/deeplabv3plus_mobilenet_os16", "deeplabv3/deeplabv3plus_resnet50_os16"}
"""Cases not reproduced yet: everything up to the ASPP agrees, but the stored ``logits_low`` lie on the ASPP's grid of
stride 16, where the decoder of the paper, and ours, has stride 4; no reading of the code found gives these numbers.
Strict: the day that one passes it has to leave this list."""


def _root(config: pytest.Config) -> Path:
    given = config.getoption("--goldens")
    if given:
        return Path(given)
    shared = config.rootpath.parent / "shared" / "goldens"
    return shared if shared.is_dir() else config.rootpath / "tests" / "data" / "goldens"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        root = _root(metafunc.config)
        cases = find_cases(root, _METHODS)
        if not cases:
            raise pytest.UsageError(f"no golden case of {sorted(_METHODS)} below {root}")
        reason = "the stored logits of DeepLab v3+ are not understood"
        marks = {c.id: [pytest.mark.xfail(reason=reason, strict=True)] if c.id in _OPEN else [] for c in cases}
        metafunc.parametrize("case", [pytest.param(c, id=c.id, marks=marks[c.id]) for c in cases])
