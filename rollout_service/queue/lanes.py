"""Which lanes of prompts a server looks at first: its own, so that an image meets warm caches.

A lane belongs to the live server with the highest hash of both (rendezvous hashing: Thaler and
Ravishankar, "Using name-based mappings to increase hit rates", 1998). When a server comes or goes,
only its own lanes change hands. Nobody has to agree on anything: a server that sees the list late
samples what another one would have sampled, and a server with nothing to do takes from all lanes.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from services.redis.keys import PROMPT_LANES


class Lanes:
    """The order in which one server looks at the lanes.

    Own lanes take turns at being first, and so do the others, so that none of them starves.
    """

    def __init__(self, server_id: str) -> None:
        self._server_id = server_id
        self._turn = 0
        self.share([])

    def share(self, server_ids: Iterable[str]) -> None:
        """Divide the lanes among these servers and this one."""
        self.own = own_lanes(self._server_id, server_ids)
        others = [lane for lane in PROMPT_LANES if lane not in self.own]
        # Not all servers steal from the same lane first.
        self._others = sorted(others, key=lambda lane: _weight(lane, self._server_id))

    def order(self) -> list[str]:
        """All lanes, own ones first; every call begins with the next one."""
        self._turn += 1
        return [*_rotated(self.own, self._turn), *_rotated(self._others, self._turn)]


def own_lanes(server_id: str, server_ids: Iterable[str]) -> list[str]:
    """The lanes that belong to a server; where servers outnumber lanes, one that it shares.

    Args:
        server_id: Whose lanes.
        server_ids: All servers that take part; with or without this one.
    """
    everybody = {server_id, *server_ids}
    own = [
        lane
        for lane in PROMPT_LANES
        if max(everybody, key=lambda one: _weight(lane, one)) == server_id
    ]
    return own or [max(PROMPT_LANES, key=lambda lane: _weight(lane, server_id))]


@lru_cache(maxsize=4096)
def _weight(lane: str, server_id: str) -> bytes:
    return hashlib.sha256(f"{lane} {server_id}".encode()).digest()


def _rotated(lanes: list[str], turn: int) -> list[str]:
    first = turn % max(len(lanes), 1)
    return lanes[first:] + lanes[:first]
