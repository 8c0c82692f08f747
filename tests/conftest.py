"""Options and settings of the whole suite."""

import pytest
from hypothesis import HealthCheck, settings

# no failure by the clock: a busy machine stalls a test for longer than hypothesis allows an example to take
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no figures: to draw them takes longer than a small training, or than an evaluation."""
    monkeypatch.setattr("maskkit.eval.page.svg", lambda figure: "data:image/svg+xml;base64,")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", help="folder of golden cases; default ../shared/goldens, else tests/data/goldens")
