"""What a person sees of a run's servers."""

from typing import Any

from cli.views.status import RunStatus, status_view
from launcher.views.terminal import SafeConsole
from services.schemas.weights import PolicyRecord, ServerRecord


def server(name: str, **changes: Any) -> ServerRecord:
    fields = {
        "server_id": name,
        "url": "http://nid001234:8200",
        "host": "nid001234",
        "gpu": "GPU-6a1e0f2c-77aa-11bb-22cc-334455667788",
        "state": "ready",
        "policy_version": 5,
        "tokens_per_s": 13505.4,
        "groups_done": 12800,
        "groups_in_flight": 3,
        "groups_limit": 8,
    }
    return ServerRecord.model_validate(fields | changes)


def shown(*servers: ServerRecord) -> list[str]:
    status = RunStatus(
        run="sgg",
        policy=PolicyRecord(policy_version=5, incarnation=1, checksum="a" * 64, transport="shm"),
        incarnation=1,
        committed_step=4,
        servers=list(servers),
        queues={"prompts": 31, "rollouts": 2, "dead": 1},
    )
    console = SafeConsole(width=80)
    with console.capture() as capture:
        console.print(status_view(status))
    return capture.get().splitlines()


def test_a_server_is_one_line_of_80_columns() -> None:
    lines = shown(server("nid001234-8200-a1b2c3"))
    assert max(map(len, lines)) <= 80
    (line,) = [line for line in lines if "nid001234" in line]
    for word in ("ready", " 5 ", "GPU-6a1e0f2c", "3/8", "13,505", "12800"):
        assert word in line


def test_who_is_behind_or_quarantined_is_said_in_words() -> None:
    lines = shown(server("late", policy_version=3), server("out", state="quarantined"))
    assert "3 of 5" in next(line for line in lines if "late" in line)
    assert "quarantined" in next(line for line in lines if "out" in line)


def test_an_error_has_its_age_and_no_control_characters() -> None:
    text = "\n".join(shown(server("a", last_error="gone\x1b[2J", last_error_s=2 * 3600 + 5)))
    assert "last error of a, 2 h ago: gone\\x1b[2J" in text


def test_nobody_there_is_said() -> None:
    assert "no rollout server is registered" in shown()
