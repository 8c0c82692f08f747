"""The tiny method of the engine's tests, and the log."""

import logging

import pytest

from tests.engine.conftest import tiny

__all__ = ["said", "tiny"]


@pytest.fixture
def said(caplog):
    """What the package writes to its log, also after a command line in this process has taken it over."""
    log = logging.getLogger("maskkit")
    before, log.propagate = log.propagate, False
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)
    log.propagate = before
