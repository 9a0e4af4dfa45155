"""Schemathesis against a running service: every route of its OpenAPI page, every check."""

import subprocess
import sys
from pathlib import Path

EXCLUDED = (
    # What a JSON Schema cannot say is refused with 422: a rubric of unknown terms, a checksum that
    # is not the manifest's.
    "positive_data_acceptance",
    # A wrong group among good ones is answered with its error and 200, a number may be sent as
    # text, and too many groups are 413.
    "negative_data_rejection",
)


def assert_as_documented(
    url: str, token: str, folder: Path, *, num_operations: int, max_examples: int
) -> None:
    """No status from 500 on but those documented, and no answer that the page does not describe.

    Args:
        url: The service's.
        token: That all its routes take.
        folder: For schemathesis's cache.
        num_operations: That the page has; all are asked.
        max_examples: How many for each operation.
    """
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-c", program, "--no-color", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {token}", "--continue-on-failure"]
    command += ["--max-examples", str(max_examples), "--seed", "1"]
    command += ["--exclude-checks", ",".join(EXCLUDED)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert f"{num_operations} selected / {num_operations} total" in found.stdout
