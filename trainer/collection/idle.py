"""How much of the rollout servers' time goes by without work."""


class IdleMeter:
    """Share of the servers' time in which the trainer had given them nothing to sample.

        1 - integral of min(groups being sampled, servers) dt / integral of servers dt

    A group keeps one server busy. Counted from what the trainer knows: groups asked for that are
    not back, and live servers. It is a lower bound: a server that samples one group where it could
    sample eight counts as busy, and so does one that is about to claim a group.

    Args:
        now_s: Monotonic seconds, here and below.
    """

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._num_sampling = 0
        self._num_servers = 0
        self._idle_s = 0.0
        self._server_s = 0.0

    def note(self, num_sampling: int, num_servers: int, now_s: float) -> None:
        """From now on so many groups are being sampled, and so many servers are there."""
        passed_s = now_s - self._since_s
        self._server_s += self._num_servers * passed_s
        self._idle_s += max(0, self._num_servers - self._num_sampling) * passed_s
        self._since_s = now_s
        self._num_sampling, self._num_servers = num_sampling, num_servers

    def read(self, now_s: float) -> float | None:
        """The share since the last read, 0..1; None where no server was there."""
        self.note(self._num_sampling, self._num_servers, now_s)
        share = self._idle_s / self._server_s if self._server_s else None
        self._idle_s = self._server_s = 0.0
        return share
