"""What a run's processes know of each other: live rollout servers, the policy, the run itself."""

from typing import Any

from redis.asyncio import Redis

from services.errors import ConflictError
from services.keys import RunKeys
from services.redis_client import redis_errors
from services.schemas.weights import PolicyRecord, ServerRecord, WeightManifest

HEARTBEAT_TTL_S = 15.0
"""A server silent for this long is gone. It beats every third of it."""

GPU_TTL_S = 30.0
"""A GPU whose server is silent for this long is free. Ending vLLM silences a server for 15 s."""

# KEYS gpu; ARGV server_id ttl_ms. Takes what is free, renews what is the server's own.
_CLAIM_GPU = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
# KEYS gpu; ARGV server_id.
_RELEASE_GPU = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""
# KEYS policy manifest run; ARGV incarnation policy manifest. An earlier trainer that still runs is
# fenced off: its weights must not replace its successor's.
_PUBLISH = """
if tonumber(redis.call('HGET', KEYS[3], 'incarnation') or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('MSET', KEYS[1], ARGV[2], KEYS[2], ARGV[3])
return 1
"""
# KEYS run; ARGV incarnation step.
_COMMIT = """
if tonumber(redis.call('HGET', KEYS[1], 'incarnation') or '0') > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'committed_step', ARGV[2])
return 1
"""


class Registry:
    """The `servers`, `gpu`, `policy`, `manifest` and `run` keys.

    Every method raises `UnavailableError` while Redis is away.
    """

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._redis = client
        self._keys = keys

    async def heartbeat(self, record: ServerRecord, *, ttl_s: float = HEARTBEAT_TTL_S) -> None:
        """Register a server, or renew its record; it counts as gone after `ttl_s` of silence."""
        with redis_errors(self._redis):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(self._keys.servers, record.server_id, record.model_dump_json())
                pipe.set(self._keys.heartbeat(record.server_id), 1, px=round(ttl_s * 1000))
                await pipe.execute()

    async def unregister(self, server_id: str) -> None:
        """Take a server that stops out of the list at once."""
        with redis_errors(self._redis):
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(self._keys.servers, server_id)
                pipe.delete(self._keys.heartbeat(server_id))
                await pipe.execute()

    async def servers(self, *, starting: bool = False) -> list[ServerRecord]:
        """Live servers by id. Those whose heartbeat expired are removed.

        Args:
            starting: With those that still load their model, which take neither work nor weights.
        """
        with redis_errors(self._redis):
            texts: Any = await self._redis.hgetall(self._keys.servers)
            records = [ServerRecord.model_validate_json(text) for text in texts.values()]
            if not records:
                return []
            beats = await self._redis.mget([self._keys.heartbeat(r.server_id) for r in records])
            gone = [r.server_id for r, beat in zip(records, beats, strict=True) if beat is None]
            if gone:
                await self._redis.hdel(self._keys.servers, *gone)
        live = [
            record
            for record in records
            if record.server_id not in gone and (starting or record.state != "starting")
        ]
        return sorted(live, key=lambda record: record.server_id)

    async def claim_gpu(self, gpu: str, server_id: str, *, ttl_s: float = GPU_TTL_S) -> str:
        """Take a GPU that nobody has, or renew the claim on one's own.

        Args:
            gpu: Its UUID.
            server_id: Who asks.
            ttl_s: The claim lives this long after its last renewal.

        Returns:
            Who has it now: `server_id`, or another server.
        """
        holder = await self._run_script(
            _CLAIM_GPU, [self._keys.gpu(gpu)], [server_id, round(ttl_s * 1000)]
        )
        return str(holder.decode())

    async def release_gpu(self, gpu: str, server_id: str) -> None:
        """Give a GPU back; without effect when it is another server's."""
        await self._run_script(_RELEASE_GPU, [self._keys.gpu(gpu)], [server_id])

    async def publish_policy(self, policy: PolicyRecord, manifest: WeightManifest) -> None:
        """Make a version the one to serve; record and manifest change in one move.

        Raises:
            ConflictError: A later incarnation of the trainer has started.
        """
        keys = [self._keys.policy, self._keys.manifest, self._keys.run]
        args: list[str | int] = [
            policy.incarnation,
            policy.model_dump_json(),
            manifest.model_dump_json(),
        ]
        await self._fenced(_PUBLISH, keys, args)

    async def policy(self) -> tuple[PolicyRecord, WeightManifest] | None:
        """The version to serve with its manifest, read in one move; None before the first."""
        with redis_errors(self._redis):
            policy, manifest = await self._redis.mget([self._keys.policy, self._keys.manifest])
        if policy is None or manifest is None:
            return None
        return (
            PolicyRecord.model_validate_json(policy),
            WeightManifest.model_validate_json(manifest),
        )

    async def next_incarnation(self, *, at_least: int = 1) -> int:
        """Start of a trainer: its incarnation, higher than every one before.

        Args:
            at_least: One more than the checkpoint's, for a Redis that lost its data.
        """
        with redis_errors(self._redis):
            number = int(await self._redis.hincrby(self._keys.run, "incarnation", 1))
            if number >= at_least:
                return number
            await self._redis.hset(self._keys.run, "incarnation", str(at_least))
        return at_least

    async def incarnation(self) -> int:
        """The latest trainer's; 0 before the first."""
        return await self._run_number("incarnation")

    async def commit_step(self, incarnation: int, step: int) -> None:
        """Record the last step whose checkpoint is complete.

        Raises:
            ConflictError: A later incarnation of the trainer has started.
        """
        await self._fenced(_COMMIT, [self._keys.run], [incarnation, step])

    async def committed_step(self) -> int:
        """The last step whose checkpoint is complete; 0 before the first."""
        return await self._run_number("committed_step")

    async def _run_number(self, field: str) -> int:
        with redis_errors(self._redis):
            value: Any = await self._redis.hget(self._keys.run, field)
        return int(value or 0)

    async def _fenced(self, script: str, keys: list[str], args: list[str | int]) -> None:
        if not await self._run_script(script, keys, args):
            raise ConflictError(
                f"trainer incarnation {args[0]} is superseded: a later one runs; this one must stop"
            )

    async def _run_script(self, script: str, keys: list[str], args: list[str | int]) -> Any:
        with redis_errors(self._redis):
            return await self._redis.register_script(script)(keys=keys, args=args)
