"""Our methods reproduce what the official implementations computed, case by case, at the manifests' tolerances.

``pytest tests/parity --goldens DIR`` runs any folder of the same layout.
"""

import importlib

import pytest

from tests.parity.goldens import Case


def test_golden(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(f"tests.parity.{case.method}").run(case, monkeypatch)
