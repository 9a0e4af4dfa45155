"""Debian's Prometheus and its promtool, on this project's own files."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from services.host.ports import free_port
from tests.processes import ROOT, wait_for

FILES = ROOT / "deploy" / "prometheus"
needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="no prometheus and promtool on PATH (Debian: apt-get install prometheus)",
)


def promtool(*arguments: str | Path) -> str:
    """Its output; fails with it where it finds something wrong."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], cwd=FILES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alert_rules() -> list[dict[str, Any]]:
    """Alerts and recorded rules."""
    groups = yaml.safe_load((FILES / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


class Prometheus:
    """A running server, asked by its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """The answer's `data`; fails with the reason where there is none."""
        answer = self._client.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, str]]:
        """Labels of every series of an instant query's result."""
        return [series["metric"] for series in self.get("/query", query=expression)["result"]]

    def up(self) -> dict[str, str]:
        """Health of the targets that it has, by service."""
        targets = self.get("/targets")["activeTargets"]
        return {target["labels"]["service"]: target["health"] for target in targets}


@contextmanager
def scraping(folder: Path, file: str, **places: str) -> Iterator[Prometheus]:
    """One of this project's configurations at work, every second instead of every 15.

    Args:
        folder: For its data; made here.
        file: `prometheus.yml`, or the other one.
        places: What stands in it to what it is here.
    """
    folder.mkdir()
    text = (FILES / file).read_text()
    for there, here in places.items():
        assert there in text
        text = text.replace(there, here)
    text = re.sub(r"_interval: \w+", "_interval: 1s", text)
    config = folder / file
    config.write_text(text)
    shutil.copy(FILES / "alerts.yml", folder)
    port, log = free_port(), folder / "prometheus.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=out,
            stderr=out,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("prometheus", lambda: _is_ready(url))
        yield Prometheus(url)
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
