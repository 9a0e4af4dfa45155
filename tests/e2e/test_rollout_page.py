"""The commands of docs/rollout.md, run as a reader would run them, against real vLLM."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from services.host.environment import child_environment
from services.images import decode_image
from tests.e2e.conftest import ROOT, RunningServer
from tests.e2e.oracle import picture

PAGE = (ROOT / "docs/rollout.md").read_text()
PRELUDE = 'curl() { command curl "$@"; echo; }\n'
"""Ends every answer with a line break."""
COMMANDS = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(rollout_server: RunningServer, tmp_path: Path) -> Path:
    """What the page asks for."""
    (tmp_path / "image.png").write_bytes(picture(90))
    shutil.copy(rollout_server.model / "model.safetensors", tmp_path)
    return tmp_path


def run(commands: str, server: RunningServer, folder: Path) -> str:
    """Standard output of a shell that stops at the first failure."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", PRELUDE + commands],
        cwd=folder,
        env=child_environment(
            ROLLOUT_URL=server.url, SGG_DATA_TOKEN="unused", SGG_ADMIN_TOKEN="unused", PATH=path
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def picture_size(folder: Path) -> tuple[int, int]:
    return decode_image((folder / "image.png").read_bytes()).size


def test_every_command_of_the_page_works(rollout_server: RunningServer, folder: Path) -> None:
    before = httpx.get(f"{rollout_server.url}/v1/policy", trust_env=False).json()
    output = run(COMMANDS, rollout_server, folder)
    after = httpx.get(f"{rollout_server.url}/v1/policy", trust_env=False).json()
    assert after["policy_version"] == before["policy_version"] + 1, "one was committed"
    assert (after["state"], after["staged_version"]) == ("ready", None), "one was aborted"
    answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    group = next(answer for answer in answers if "completions" in answer)
    assert len(group["completions"]) == 2
    assert next(a for a in answers if "choices" in a)["choices"][0]["message"]["content"]
    asked = [graph for answer in answers for graph in answer.get("graphs", [])]
    assert [(graph["width"], graph["height"]) for graph in asked] == [picture_size(folder)] * 2
    assert asked[1]["text"]
    assert (folder / "image.svg").read_text().startswith("<svg ")
    assert "vllm:" in output


def test_every_route_has_a_command(rollout_server: RunningServer) -> None:
    paths = httpx.get(f"{rollout_server.url}/openapi.json", trust_env=False).json()["paths"]
    known = {re.sub(r"\{.*", "", path) for path in paths}
    assert "/v1/weights/files/" in known
    missing = [path for path in known if f"$ROLLOUT_URL{path}" not in COMMANDS]
    assert not missing
