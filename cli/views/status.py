"""What `sgg-rl status` shows: how far a run is, its trainer, services, disk and queues."""

from collections.abc import Iterator

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from cli.views.safe_text import safe
from services.printable import age
from services.run_folder import LoggedError, RunProgress, TrainerSign
from services.schemas.common import Message
from services.schemas.weights import PolicyRecord, ServerRecord

_LITTLE_GIB = 10.0
_SILENT_S = 60.0
"""A trainer writes every ten seconds."""
_STATE_STYLES = {"ready": "green", "quarantined": "bold red"}


class HostStatus(Message):
    """What can be said of a run without Redis: by its folder and its reward service."""

    progress: RunProgress | None
    """None before the first step."""
    trainer: TrainerSign | None
    """None where no trainer has begun."""
    reward: bool
    """Whether the reward service answers from here."""
    disk_free_gib: float
    """On the file system with the run's folder."""
    disk_gib: float
    last_error: LoggedError | None
    """The newest one in the run's logs."""


class RunStatus(HostStatus):
    """What `sgg-rl status --json` prints."""

    run: str
    policy: PolicyRecord | None
    """The version to serve; null before the first."""
    incarnation: int
    committed_step: int
    servers: list[ServerRecord]
    queues: dict[str, int]
    """Items that have not ended, by `prompts` (all lanes) and `rollouts`; and dead letters."""


def host_view(found: HostStatus) -> Group:
    """The part that needs no Redis, as a person reads it; it fits 80 columns."""
    reward = "answers" if found.reward else "does not answer"
    disk = f"{found.disk_free_gib:,.1f} of {found.disk_gib:,.1f} GiB free"
    lines = [
        Text(str(found.progress or "no step yet")),
        Text(f"trainer: {found.trainer or 'not started'}", style=_trainer_style(found.trainer)),
        Text(f"reward service {reward}", style="" if found.reward else "yellow"),
        Text(f"disk: {disk}", style="yellow" if found.disk_free_gib < _LITTLE_GIB else ""),
    ]
    if found.last_error is not None:
        lines.append(Text(safe(str(found.last_error)), style="yellow"))
    return Group(*lines)


def _trainer_style(trainer: TrainerSign | None) -> str:
    if trainer is None or trainer.done:
        return ""
    return "bold red" if trainer.failed or trainer.ago_s > _SILENT_S else ""


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
    errors = _errors(found.servers)
    return Group(Text(head), host_view(found), Text(), body, *errors, Text(f"\nqueues: {foot}"))


def _row(server: ServerRecord, policy: PolicyRecord | None) -> list[Text]:
    cells = [
        Text(server.server_id),
        Text(server.state, style=_STATE_STYLES.get(server.state, "yellow")),
        _version(server, policy),
        Text(_gpus(server)),
    ]
    load = f"{server.groups_in_flight}/{server.groups_limit}"
    return cells + [Text(t) for t in (load, f"{server.tokens_per_s:,.0f}", f"{server.groups_done}")]


def _gpus(server: ServerRecord) -> str:
    """Example: `GPU-6a1e0f2c +3`, a server of four."""
    first, *more = server.gpus or ["-"]
    return first[:12] + (f" +{len(more)}" if more else "")


def _version(server: ServerRecord, policy: PolicyRecord | None) -> Text:
    if policy is None or server.policy_version == policy.policy_version:
        return Text(str(server.policy_version))
    return Text(f"{server.policy_version} of {policy.policy_version}", style="yellow")


def _errors(servers: list[ServerRecord]) -> Iterator[Text]:
    for server in servers:
        if server.last_error is not None:
            ago = age(server.last_error_s or 0)
            text = f"last error of {server.server_id}, {ago} ago: {safe(server.last_error)}"
            yield Text(text, style="yellow")
