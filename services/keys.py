"""Every Redis key of the system, in one place. All live under `sgg:{run}:`.

| key                    | type   | written by       | meaning |
|------------------------|--------|------------------|---------|
| prompts                | stream | trainer          | groups to sample; consumer group `rollout` |
| rollouts               | stream | rollout servers  | sampled groups; consumer group `trainer` |
| dead                   | stream | queue            | what failed too often, with every error |
| seen:{stream}:{id}     | string | queue            | guard: an item enters a stream once |
| done:{stream}:{id}     | string | queue            | guard: one outcome, completed or dead |
| failures:{stream}:{id} | list   | queue            | one error text per failed attempt |
| servers                | hash   | rollout servers  | server_id to `ServerRecord` |
| heartbeat:{server}     | string | rollout servers  | expires when the server is gone |
| policy                 | string | trainer          | `PolicyRecord`: the version to serve |
| manifest               | string | trainer          | `WeightManifest` of that version |
| images:{sha256}        | string | `ImageStore`     | images for hosts without shared files |
| run                    | hash   | trainer          | incarnation, last committed step |
"""

CONSUMER_GROUPS = {"prompts": "rollout", "rollouts": "trainer"}
"""Stream to the one group that consumes it."""


class RunKeys:
    """Key names of one run.

    Example: `RunKeys("demo").prompts == "sgg:demo:prompts"`
    """

    def __init__(self, run: str) -> None:
        self.prefix = f"sgg:{run}:"
        self.prompts = self.prefix + "prompts"
        self.rollouts = self.prefix + "rollouts"
        self.dead = self.prefix + "dead"
        self.servers = self.prefix + "servers"
        self.policy = self.prefix + "policy"
        self.manifest = self.prefix + "manifest"
        self.run = self.prefix + "run"

    def seen(self, stream: str, work_id: str) -> str:
        """Guard of enqueue; holds the item's present entry id."""
        return f"{self.prefix}seen:{stream}:{work_id}"

    def done(self, stream: str, work_id: str) -> str:
        """Guard of the outcome."""
        return f"{self.prefix}done:{stream}:{work_id}"

    def failures(self, stream: str, work_id: str) -> str:
        """Errors of the item's attempts."""
        return f"{self.prefix}failures:{stream}:{work_id}"

    def heartbeat(self, server_id: str) -> str:
        """Key that lives as long as the server does."""
        return f"{self.prefix}heartbeat:{server_id}"

    def image(self, sha256: str) -> str:
        """Key of an image's bytes."""
        return f"{self.prefix}images:{sha256}"
