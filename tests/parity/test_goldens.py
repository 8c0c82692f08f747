"""Our methods reproduce what the official implementations computed, case by case, at the manifests' tolerances.

``pytest tests/parity --goldens DIR`` runs any folder of the same layout.
"""

import importlib

import pytest
import torch

from tests.parity.goldens import Case


def test_golden(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(f"tests.parity.{case.method}").run(case, monkeypatch)


@pytest.mark.slow
def test_golden_by_the_paths_of_an_exported_graph(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fast paths of eager PyTorch on processors; the first case of every method, all where thorough."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    importlib.import_module(f"tests.parity.{case.method}").run(case, monkeypatch)
