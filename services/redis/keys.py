"""Every Redis key of the system, in one place. All live under `sgg:{run}:`.

| key                    | type   | written by       | meaning |
|------------------------|--------|------------------|---------|
| prompts/{lane}         | stream | trainer          | groups to sample; consumer group `rollout` |
| rollouts               | stream | rollout servers  | sampled groups; consumer group `trainer` |
| dead                   | stream | queue            | what failed too often, with every error |
| seen:{stream}:{id}     | string | queue            | guard: an item enters a stream once |
| done:{stream}:{id}     | string | queue            | guard: an item is among the dead once |
| failures:{stream}:{id} | list   | queue            | one error text per failed attempt |
| servers                | hash   | rollout servers  | server_id to `ServerRecord` |
| heartbeat:{server}     | string | rollout servers  | expires when the server is gone |
| policy                 | string | trainer          | `PolicyRecord`: the version to serve |
| manifest               | string | trainer          | `WeightManifest` of that version |
| gpu:{uuid}             | string | rollout servers  | server_id of its one server; has a TTL |
| images:{sha256}        | string | `ImageStore`     | images for hosts without shared files |
| run                    | hash   | trainer          | incarnation, committed step, folder |
| aside:{key}            | any    | `Registry`       | what was under `key`, of another type |
"""

import hashlib

from services.schemas.prompts import PromptGroup

NO_REDIS = "redis://127.0.0.1:1/0"
"""Nobody listens there. A server without Redis serves the model that it was started with."""
PROMPT_LANES = tuple(f"prompts/{digit}" for digit in "0123456789abcdef")
"""Prompts are spread over these streams, so that an image's groups meet at one server's caches."""
CONSUMER_GROUPS = dict.fromkeys(PROMPT_LANES, "rollout") | {"rollouts": "trainer"}
"""Stream to the one group that consumes it."""


def prompt_stream(prompt: PromptGroup) -> str:
    """The lane of a prompt, always the same: its first image's, or its own where it has none.

    Example: `"prompts/9"` for an image whose sha256 is `9f86…0a08`
    """
    if prompt.images:
        return f"prompts/{prompt.images[0].sha256[0]}"
    return f"prompts/{hashlib.sha256(prompt.group_id.encode()).hexdigest()[0]}"


class RunKeys:
    """Key names of one run.

    Example: `RunKeys("demo").dead == "sgg:demo:dead"`
    """

    def __init__(self, run: str) -> None:
        self.name = run
        self.prefix = f"sgg:{run}:"
        self.dead = self.prefix + "dead"
        self.servers = self.prefix + "servers"
        self.policy = self.prefix + "policy"
        self.manifest = self.prefix + "manifest"
        self.run = self.prefix + "run"

    @property
    def types(self) -> dict[str, str]:
        """Each key that is there once in a run, and its type."""
        streams = [self.stream(name) for name in CONSUMER_GROUPS]
        return (
            dict.fromkeys([*streams, self.dead], "stream")
            | dict.fromkeys([self.servers, self.run], "hash")
            | dict.fromkeys([self.policy, self.manifest], "string")
        )

    def stream(self, name: str) -> str:
        """Key of a stream of work: one of `CONSUMER_GROUPS`."""
        return self.prefix + name

    def seen(self, stream: str, work_id: str) -> str:
        """Guard of enqueue; holds the id of the item's present entry, or last one."""
        return f"{self.prefix}seen:{stream}:{work_id}"

    def done(self, stream: str, work_id: str) -> str:
        """Guard of the dead."""
        return f"{self.prefix}done:{stream}:{work_id}"

    def failures(self, stream: str, work_id: str) -> str:
        """Errors of the item's attempts."""
        return f"{self.prefix}failures:{stream}:{work_id}"

    def heartbeat(self, server_id: str) -> str:
        """Key that lives as long as the server does."""
        return f"{self.prefix}heartbeat:{server_id}"

    def gpu(self, uuid: str) -> str:
        """Key that says which server has a GPU."""
        return f"{self.prefix}gpu:{uuid}"

    def image(self, sha256: str) -> str:
        """Key of an image's bytes."""
        return f"{self.prefix}images:{sha256}"
