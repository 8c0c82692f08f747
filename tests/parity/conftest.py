"""Collects the golden cases: the few that the project carries, and a whole folder where there is one."""

from pathlib import Path

import pytest

from tests.parity.goldens import find_cases
from tests.thorough import THOROUGH

_HERE = Path(__file__).parent
_METHODS = {p.stem for p in [*_HERE.glob("*.py"), *(p.parent for p in _HERE.glob("*/__init__.py"))]} - {
    "conftest",
    "goldens",
    "semantic",
    "test_case",
    "test_goldens",
    "__init__",
}


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
        if not metafunc.config.getoption("--goldens"):
            for folder in sorted(root.parent.glob("weights/*/goldens")):
                cases += find_cases(folder, _METHODS)
        if not cases:
            raise pytest.UsageError(f"no golden case of {sorted(_METHODS)} below {root}")
        if metafunc.function.__name__ == "test_golden_by_the_paths_of_an_exported_graph" and not THOROUGH:
            cases = list({case.method: case for case in reversed(cases)}.values())[::-1]
        metafunc.parametrize("case", cases, ids=lambda case: case.id)
