"""Requests that schemathesis derives from the description of the API, valid and not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskkit.serve.limits import Limits

TOKEN = "a-token-of-a-service"


@pytest.mark.slow
def test_answers_are_as_described(other: Callable[..., Any], tmp_path: Path) -> None:
    with other(Limits(max_bytes=300_000), token=TOKEN) as service:
        options = ["--max-examples", "10", "--seed", "1", "--suppress-health-check", "all", "--no-color"]
        options += ["--exclude-checks", "positive_data_acceptance"]  # not every text is a class of the model
        command = [Path(sys.executable).parent / "schemathesis", "run", f"{service.url}/openapi.json", *options]
        done = subprocess.run(
            [*command, "--header", f"Authorization: Bearer {TOKEN}"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        statuses = {record["status"] for record in service.records}
        assert {200, 401, 404, 405, 422} <= statuses
        assert all(status < 500 or status == 503 for status in statuses)
        assert service.queue.held == 0
