"""What a run's processes know of each other: live rollout servers, the policy, the run itself."""

import logging
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from redis.asyncio import Redis

from services.errors import SettingsError, SupersededError
from services.redis.client import client_url, connect, redis_errors
from services.redis.keys import RunKeys
from services.run_folder import RunFolder
from services.schemas.common import Message
from services.schemas.versions import parse
from services.schemas.weights import PolicyRecord, ServerRecord, WeightManifest
from services.settings import Settings

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

HEARTBEAT_TTL_S = 15.0
"""A server silent for this long is gone. It beats every third of it."""

GPU_TTL_S = 30.0
"""A GPU whose server is silent for this long is free. Ending vLLM silences a server for 15 s."""

# KEYS servers heartbeat; ARGV server_id ttl_ms record url. One address has one server: another's
# record of it is a killed one's.
_REGISTER = """
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
  local read, record = pcall(cjson.decode, records[i + 1])
  if read and type(record) == 'table' and record['url'] == ARGV[4] then
    redis.call('HDEL', KEYS[1], records[i])
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('SET', KEYS[2], 1, 'PX', ARGV[2])
"""
# KEYS gpu …; ARGV server_id ttl_ms. Takes all or none: what is free, and what is the server's own.
_CLAIM_GPUS = """
for _, gpu in ipairs(KEYS) do
  local holder = redis.pcall('GET', gpu)
  if type(holder) == 'string' and holder ~= ARGV[1] then return holder end
end
for _, gpu in ipairs(KEYS) do redis.call('SET', gpu, ARGV[1], 'PX', ARGV[2]) end
return ARGV[1]
"""
# KEYS gpu …; ARGV server_id.
_RELEASE_GPUS = """
for _, gpu in ipairs(KEYS) do
  if redis.pcall('GET', gpu) == ARGV[1] then redis.call('DEL', gpu) end
end
"""
_DIGITS = 15  # in the script below too
"""Digits of a number that Redis's scripts hold exactly. A longer one is not this program's."""
_PRELUDE = """
local function number(run, field)
  local text = redis.call('HGET', run, field) or ''
  return #text <= 15 and string.match(text, '^%d+$') and tonumber(text) or 0
end
"""
# KEYS run; ARGV folder_id folder. Where another folder has the name: that one's place.
_OTHER_FOLDER = """
local id, place = unpack(redis.call('HMGET', KEYS[1], 'folder_id', 'folder'))
if id and place and id ~= ARGV[1] and place ~= ARGV[2] then return place end
"""
# KEYS run; ARGV folder_id folder at_least. One step: two starts at once never get the same, and two
# folders never the same name.
_NEXT_INCARNATION = f"""{_OTHER_FOLDER}
local incarnation = math.max(number(KEYS[1], 'incarnation') + 1, tonumber(ARGV[3]))
redis.call('HSET', KEYS[1], 'incarnation', string.format('%d', incarnation),
           'folder_id', ARGV[1], 'folder', ARGV[2])
return incarnation
"""
# KEYS policy manifest run; ARGV incarnation policy manifest. An earlier trainer that still runs is
# refused: its weights must not replace its successor's.
_PUBLISH = """
if number(KEYS[3], 'incarnation') > tonumber(ARGV[1]) then return 0 end
redis.call('MSET', KEYS[1], ARGV[2], KEYS[2], ARGV[3])
return 1
"""
# KEYS run; ARGV incarnation step.
_COMMIT = """
if number(KEYS[1], 'incarnation') > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'committed_step', ARGV[2])
return 1
"""
# KEYS policy manifest run; ARGV incarnation step policy_version policy manifest folder_id folder.
# 0 superseded, else 1, and one more for each of run and policy that had to be written again.
_REASSERT = """
local mine, step, version = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if number(KEYS[3], 'incarnation') > mine then return 0 end
local outcome = 1
if number(KEYS[3], 'incarnation') < mine or number(KEYS[3], 'committed_step') < step then
  redis.call('HSET', KEYS[3], 'incarnation', ARGV[1], 'committed_step', ARGV[2],
             'folder_id', ARGV[6], 'folder', ARGV[7])
  outcome = outcome + 1
end
local function order(text)
  local read, record = pcall(cjson.decode, text)
  if not read or type(record) ~= 'table' then return -1, -1 end
  local incarnation, served = tonumber(record['incarnation']), tonumber(record['policy_version'])
  if not incarnation or not served or incarnation >= 2^53 or served >= 2^53 then return -1, -1 end
  return incarnation, served
end
local found = redis.call('MGET', KEYS[1], KEYS[2])
local incarnation, served = -1, -1
if found[1] and found[2] then incarnation, served = order(found[1]) end
local same = found[1] == ARGV[4] and found[2] == ARGV[5]
if incarnation < mine or (incarnation == mine and served <= version and not same) then
  redis.call('MSET', KEYS[1], ARGV[4], KEYS[2], ARGV[5])
  outcome = outcome + 1
end
return outcome
"""
# KEYS …; ARGV prefix, then the type of each. The keys of another type, which are renamed.
_SET_ASIDE = """
local renamed = {}
for i, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= ARGV[i + 1] then
    redis.call('RENAME', key, ARGV[1] .. 'aside:' .. string.sub(key, #ARGV[1] + 1))
    renamed[#renamed + 1] = {key, found, ARGV[i + 1]}
  end
end
return renamed
"""


class RunOwner(NamedTuple):
    """The folder whose run has a name in Redis. It is known again by either of the two."""

    folder_id: str
    """A random text in the folder, so that the folder may be moved"""
    place: str
    """Host and absolute path, so that a run may begin anew where its folder was deleted"""

    @classmethod
    def of(cls, folder: RunFolder) -> "RunOwner":
        """Read the text; where there is none yet, it is a new one."""
        place = f"{socket.gethostname()}:{folder.path.resolve()}"
        try:
            return cls(folder.folder_id.read_text(), place)
        except FileNotFoundError:
            return cls(uuid.uuid4().hex, place)

    def keep(self, folder: RunFolder) -> None:
        """Leave the text in the folder."""
        folder.path.mkdir(parents=True, exist_ok=True)
        draft = folder.folder_id.with_suffix(".draft")
        draft.write_text(self.folder_id)
        draft.replace(folder.folder_id)


class Registry:
    """The `servers`, `gpu`, `policy`, `manifest` and `run` keys.

    Every method raises `UnavailableError` while Redis is away. What somebody else has put there is
    passed over, and logged once.
    """

    def __init__(self, client: Redis, keys: RunKeys) -> None:
        self._redis = client
        self._keys = keys
        self._said: set[str] = set()

    async def set_aside(self) -> None:
        """Rename each key of the run that is of another type than it must be.

        The trainer calls it now and then: until it is renamed, the key cannot be used.
        """
        types = self._keys.types
        renamed = await self._run_script(_SET_ASIDE, [*types], self._keys.prefix, *types.values())
        for key, found, wanted in renamed:
            logger.warning(
                "the key %s was a %s and must be a %s: it is set aside as %saside:…",
                *(key.decode(), found.decode(), wanted.decode(), self._keys.prefix),
            )

    async def register(self, record: ServerRecord) -> None:
        """A server's first heartbeat. It takes the place of each server that had its address."""
        keys = [self._keys.servers, self._keys.heartbeat(record.server_id)]
        ttl_ms, text = round(HEARTBEAT_TTL_S * 1000), record.model_dump_json()
        await self._run_script(_REGISTER, keys, record.server_id, ttl_ms, text, record.url)

    async def heartbeat(self, record: ServerRecord, *, ttl_s: float = HEARTBEAT_TTL_S) -> None:
        """Renew a server's record; it counts as gone after `ttl_s` of silence."""
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
            if not texts:
                return []
            ids = [server_id.decode(errors="replace") for server_id in texts]
            beats = await self._redis.mget([self._keys.heartbeat(name) for name in ids])
            gone = [raw for raw, beat in zip(texts, beats, strict=True) if beat is None]
            if gone:
                await self._redis.hdel(self._keys.servers, *gone)
        live = [
            record
            for name, raw in zip(ids, texts, strict=True)
            if raw not in gone
            and (record := self._read(ServerRecord, texts[raw], f"of the server {name:.100}"))
            and (starting or record.state != "starting")
        ]
        return sorted(live, key=lambda record: record.server_id)

    def _read(self, kind: type[M], text: bytes, what: str) -> M | None:
        """The record in a text; None where the text is not one."""
        try:
            return parse(kind, text)
        except ValidationError as error:
            if what not in self._said:
                logger.warning(
                    "the record %s in Redis cannot be read and is passed over: is it another "
                    "release's, or not this program's? %s: %.200r",
                    *(what, error.errors()[0]["msg"], text),
                )
            self._said.add(what)
            return None

    async def claim_gpus(
        self, gpus: Sequence[str], server_id: str, *, ttl_s: float = GPU_TTL_S
    ) -> str:
        """Take GPUs that nobody has, or renew the claim on one's own: all of them, or none.

        Args:
            gpus: Their UUIDs, at least one.
            server_id: The server that asks.
            ttl_s: The claim lives this long after its last renewal.

        Returns:
            The server that has them now: `server_id`, or another that has one of them.
        """
        keys = [self._keys.gpu(gpu) for gpu in gpus]
        holder = await self._run_script(_CLAIM_GPUS, keys, server_id, round(ttl_s * 1000))
        return str(holder.decode(errors="replace"))

    async def release_gpus(self, gpus: Sequence[str], server_id: str) -> None:
        """Give GPUs back; those that are another server's stay so."""
        await self._run_script(_RELEASE_GPUS, [self._keys.gpu(gpu) for gpu in gpus], server_id)

    async def publish_policy(self, policy: PolicyRecord, manifest: WeightManifest) -> None:
        """Make a version the one to serve; record and manifest change in one move.

        Raises:
            SupersededError: A later incarnation of the trainer has started.
        """
        keys = [self._keys.policy, self._keys.manifest, self._keys.run]
        texts = policy.model_dump_json(), manifest.model_dump_json()
        await self._unless_superseded(_PUBLISH, keys, policy.incarnation, *texts)

    async def policy(self) -> tuple[PolicyRecord, WeightManifest] | None:
        """The version to serve with its manifest, read in one move; None before the first."""
        with redis_errors(self._redis):
            found: Any = await self._redis.mget([self._keys.policy, self._keys.manifest])
        policy, manifest = found
        if policy is None or manifest is None:
            return None
        record = self._read(PolicyRecord, policy, "of the policy")
        weights = self._read(WeightManifest, manifest, "of its manifest")
        return None if record is None or weights is None else (record, weights)

    async def reassert(
        self, policy: PolicyRecord, manifest: WeightManifest, committed_step: int, owner: RunOwner
    ) -> bool:
        """Write again what a trainer has written and Redis has lost, or has an earlier state of.

        Returns:
            Whether anything was missing.

        Raises:
            SupersededError: A later incarnation of the trainer has started.
        """
        keys = [self._keys.policy, self._keys.manifest, self._keys.run]
        numbers = policy.incarnation, committed_step, policy.policy_version
        texts = policy.model_dump_json(), manifest.model_dump_json()
        return await self._unless_superseded(_REASSERT, keys, *numbers, *texts, *owner) > 1

    async def check_name(self, owner: RunOwner) -> None:
        """Look whether a trainer of this folder could start.

        Raises:
            SettingsError: The run's name is another folder's here.
        """
        self._unless_elsewhere(await self._run_script(_OTHER_FOLDER, [self._keys.run], *owner))

    async def next_incarnation(self, owner: RunOwner, *, at_least: int = 1) -> int:
        """Start of a trainer: its incarnation, higher than every one before; one atomic step.

        Args:
            owner: The trainer's folder. From now on the name is its own.
            at_least: One more than the checkpoint's, for a Redis that lost its data.

        Raises:
            SettingsError: The run's name is another folder's here.
        """
        found = await self._run_script(_NEXT_INCARNATION, [self._keys.run], *owner, at_least)
        self._unless_elsewhere(found)
        return int(found)

    def _unless_elsewhere(self, found: object) -> None:
        if isinstance(found, bytes):
            raise SettingsError(
                f"Redis at {client_url(self._redis)} has a run {self._keys.name!r} of another "
                f"folder, {found.decode(errors='replace')}: two runs of one name would take each "
                f"other's servers and groups. Give this one a name (--set run.name="
                f"{self._keys.name}-2) or a database of its own (redis.url with another number "
                "at its end); docs/operations.md says what to do where that run is over"
            )

    async def incarnation(self) -> int:
        """The incarnation of the latest trainer; 0 before the first."""
        return await self._run_number("incarnation")

    async def commit_step(self, incarnation: int, step: int) -> None:
        """Record the last step whose checkpoint is complete.

        Raises:
            SupersededError: A later incarnation of the trainer has started.
        """
        await self._unless_superseded(_COMMIT, [self._keys.run], incarnation, step)

    async def committed_step(self) -> int:
        """The last step whose checkpoint is complete; 0 before the first."""
        return await self._run_number("committed_step")

    async def _run_number(self, field: str) -> int:
        with redis_errors(self._redis):
            value: Any = await self._redis.hget(self._keys.run, field)
        return int(value) if value and len(value) <= _DIGITS and value.isdigit() else 0

    async def _unless_superseded(
        self, script: str, keys: list[str], incarnation: int, *args: str | int
    ) -> int:
        outcome = int(await self._run_script(script, keys, incarnation, *args))
        if outcome == 0:
            raise SupersededError(incarnation)
        return outcome

    async def _run_script(self, script: str, keys: list[str], *args: str | int) -> Any:
        with redis_errors(self._redis):
            return await self._redis.register_script(_PRELUDE + script)(keys=keys, args=args)


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Registry]:
    """The run's registry, over a connection of its own."""
    async with connect(settings.redis) as redis:
        yield Registry(redis, RunKeys(settings.run.name))
