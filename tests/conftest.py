"""Options and settings of the whole suite."""

import pytest
from hypothesis import HealthCheck, settings

# no failure by the clock: a busy machine stalls a test for longer than hypothesis allows an example to take
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", help="folder of golden cases; default ../shared/goldens, else tests/data/goldens")
