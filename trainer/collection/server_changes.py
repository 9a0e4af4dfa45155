"""Which rollout servers come and go, for the run's events."""

from collections.abc import Sequence

from services.schemas.weights import ServerRecord
from trainer.records.events import EventLog


class ServerChanges:
    """Compares each look at the registry with the one before it.

    Args:
        events: Is told of what has changed.
    """

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._known: dict[str, ServerRecord] = {}

    def look(self, servers: Sequence[ServerRecord]) -> None:
        """Tell what has changed.

        Args:
            servers: Live servers that have loaded their model.
        """
        before, self._known = self._known, {server.server_id: server for server in servers}
        for server_id in before.keys() - self._known.keys():
            self._events.note("server_died", f"{server_id} is gone: it stopped, or is silent")
        for server_id, server in self._known.items():
            if server_id not in before:
                where = f"{server.url}, version {server.policy_version}"
                self._events.note("server_joined", f"{server_id} is there: {where}")
            self._note_quarantine(before.get(server_id), server)

    def _note_quarantine(self, before: ServerRecord | None, server: ServerRecord) -> None:
        was, is_now = (
            each is not None and each.state == "quarantined" for each in (before, server)
        )
        if is_now and not was:
            why = server.last_error or "it could not load a version"
            self._events.note("quarantined", f"{server.server_id} samples nothing: {why}")
        if was and not is_now:
            self._events.note("recovered", f"{server.server_id} samples again")
