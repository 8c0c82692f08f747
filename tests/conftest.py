"""Options and settings of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--goldens", help="folder of golden cases; default ../shared/goldens, else tests/data/goldens")
