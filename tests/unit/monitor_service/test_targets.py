"""What Prometheus is told of addresses."""

import json
from pathlib import Path

from monitor_service.targets import service_targets, targets_file, write_targets
from services.schemas.weights import ServerRecord
from services.settings import Settings


def settings(root: Path) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "demo", "root": str(root)},
            "model": {"path": "x"},
            "data": {"train": "x"},
            "reward": {"url": "http://node1:8100"},
            "monitor": {"url": "http://node1:8400"},
        }
    )


def server(name: str, url: str) -> ServerRecord:
    return ServerRecord(
        server_id=name,
        url=url,
        host="h",
        gpu=None,
        state="ready",
        policy_version=0,
        tokens_per_s=0,
        groups_done=0,
    )


def test_a_server_that_is_back_under_another_name_is_one_target(tmp_path: Path) -> None:
    servers = [
        server("a", "http://node2:8200"),
        server("b", "http://node2:8200"),
        server("c", "http://[::1]:8201"),
    ]
    groups = {g.labels["service"]: g for g in service_targets(settings(tmp_path), servers)}
    assert groups["rollout"].targets == ["[::1]:8201", "node2:8200"]
    assert groups["reward"].targets == ["node1:8100"]
    assert groups["reward"].labels["run"] == "demo"


def test_the_file_is_rewritten_only_when_it_changes(tmp_path: Path) -> None:
    found = settings(tmp_path / "runs")
    file = targets_file(found)
    write_targets(found, [])
    assert json.loads(file.read_text())[0]["targets"] == ["node1:8400"]
    inode = file.stat().st_ino
    write_targets(found, [])
    assert file.stat().st_ino == inode
    write_targets(found, [server("a", "http://node2:8200")])
    assert json.loads(file.read_text())[2]["targets"] == ["node2:8200"]
    assert [f.name for f in file.parent.iterdir()] == [file.name]
