"""What `sgg-rl status` shows: a run's servers, policy and queues."""

from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.views.safe_text import safe
from services.schemas.common import Message
from services.schemas.weights import PolicyRecord, ServerRecord

_STATE_STYLES = {"ready": "green", "quarantined": "bold red"}
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


class RunStatus(Message):
    """What `sgg-rl status --json` prints."""

    run: str
    policy: PolicyRecord | None
    """The version to serve; null before the first."""
    incarnation: int
    committed_step: int
    servers: list[ServerRecord]
    queues: dict[str, int]
    """Items that have not ended, by `prompts` (all lanes) and `rollouts`; and dead letters."""


def status_view(found: RunStatus) -> Group:
    """The status as a person reads it; it fits 80 columns."""
    policy = f"policy version {found.policy.policy_version}" if found.policy else "no policy yet"
    head = (
        f"run {found.run}: {policy}, incarnation {found.incarnation}, "
        f"last committed step {found.committed_step}"
    )
    foot = ", ".join(f"{name} {number}" for name, number in found.queues.items())
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("server", "state", "version", "GPU"):
        table.add_column(name, overflow="fold")
    for name in ("load", "tok/s", "done"):
        table.add_column(name, justify="right", no_wrap=True)
    for server in found.servers:
        table.add_row(*_row(server, found.policy))
    body = table if found.servers else Text("no rollout server is registered", style="yellow")
    return Group(Text(f"{head}\n"), body, *_errors(found.servers), Text(f"\nqueues: {foot}"))


def _row(server: ServerRecord, policy: PolicyRecord | None) -> list[Text]:
    cells = [
        Text(server.server_id),
        Text(server.state, style=_STATE_STYLES.get(server.state, "yellow")),
        _version(server, policy),
        Text((server.gpu or "-")[:12]),
    ]
    load = f"{server.groups_in_flight}/{server.groups_limit}"
    return cells + [Text(t) for t in (load, f"{server.tokens_per_s:,.0f}", f"{server.groups_done}")]


def _version(server: ServerRecord, policy: PolicyRecord | None) -> Text:
    if policy is None or server.policy_version == policy.policy_version:
        return Text(str(server.policy_version))
    return Text(f"{server.policy_version} of {policy.policy_version}", style="yellow")


def _errors(servers: list[ServerRecord]) -> Iterator[Text]:
    for server in servers:
        if server.last_error is not None:
            age = _age(server.last_error_s or 0)
            text = f"last error of {server.server_id}, {age} ago: {safe(server.last_error)}"
            yield Text(text, style="yellow")


def _age(seconds: float) -> str:
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"
