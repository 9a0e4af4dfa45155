from pathlib import Path
from typing import Any

from services.run_folder.events import read_events
from services.schemas.weights import ServerRecord
from trainer.collection.server_changes import ServerChanges
from trainer.records.events import EventLog
from trainer.records.step_lines import StepLines


def server(name: str, **more: Any) -> ServerRecord:
    return ServerRecord(
        **{
            "server_id": name,
            "url": f"http://{name}:8200",
            "host": name,
            "gpu": None,
            "state": "ready",
            "policy_version": 3,
            "tokens_per_s": 0,
            "groups_done": 0,
        }
        | more
    )


def test_each_change_between_two_looks_is_an_event(tmp_path: Path) -> None:
    events = EventLog(StepLines(tmp_path / "events.jsonl"))
    events.step = 7
    changes = ServerChanges(events)
    sick = server("b", state="quarantined", last_error="no room")
    looks: tuple[list[ServerRecord], ...] = (
        [server("a")],
        [server("a"), server("b")],
        [server("a"), sick],
        [server("b")],
        [],
    )
    for servers in looks:
        changes.look(servers)
        changes.look(servers)
    found = read_events(tmp_path)
    assert [(event.step, event.kind, event.text.split()[0]) for event in found] == [
        (7, "server_joined", "a"),
        (7, "server_joined", "b"),
        (7, "quarantined", "b"),
        (7, "server_died", "a"),
        (7, "recovered", "b"),
        (7, "server_died", "b"),
    ]
    assert found[2].text == "b samples nothing: no room"
