"""The tiny method of these tests, found by the registry as any other, and a data set of drawn shapes for it."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import maskkit.models
from maskkit import registry
from maskkit.config import DataConfig, RunConfig

MODELS = str(Path(__file__).parent / "models")


@pytest.fixture
def tiny(monkeypatch):
    """Configuration of a run of the tiny method, which is registered for this test only."""
    monkeypatch.setattr(maskkit.models, "__path__", [*maskkit.models.__path__, MODELS])
    preset = registry.preset("tinynet")
    yield RunConfig("tinynet", preset.model, preset.input, preset.augment, preset.train)
    sys.modules.pop("maskkit.models.tinynet", None)
