"""Redis in this process: the commands that this project sends, and its Lua by a real Lua.

`tests/integration/test_simulated_redis.py` holds it against a real one. fakeredis 2.41.0 does not
run the claim's script.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lupa import luajit21
from redis.exceptions import ResponseError

Id = tuple[int, int]
Args = list[bytes]
_WRONGTYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
_NOGROUP = "NOGROUP No such key or consumer group"


class Status(bytes):
    """An answer such as OK, which Lua sees as a table."""


@dataclass(slots=True)
class Group:
    last: Id = (0, 0)
    pending: dict[Id, list[Any]] = field(default_factory=dict)
    """Entry to consumer, time in ms when it was handed out, and number of deliveries."""


@dataclass(slots=True)
class Stream:
    entries: dict[Id, Args] = field(default_factory=dict)
    last: Id = (0, 0)
    groups: dict[bytes, Group] = field(default_factory=dict)


@dataclass(slots=True)
class Waiter:
    """A read that waits for an entry."""

    args: Args
    answer: Callable[[Any], None]
    keys: list[bytes]
    is_over: bool = False


_KINDS = {bytes: b"string", list: b"list", dict: b"hash", Stream: b"stream"}


class RedisTwin:
    """A server's data, and what each command does to it.

    Args:
        clock: Seconds of the server's own clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: dict[bytes, Any] = {}
        self._expires: dict[bytes, float] = {}
        """In ms."""
        self._waiters: list[Waiter] = []
        self._touched: set[bytes] = set()
        """Streams that got an entry since readers were last looked at."""
        self._commands: dict[bytes, Callable[..., Any]] = {
            name[4:].upper().encode(): getattr(self, name)
            for name in dir(self)
            if name.startswith("cmd_")
        }
        self.num_calls = 0

    # -- what a server does

    def call(self, *args: Any) -> Any:
        """Run a command, then serve reads that it has made possible.

        Raises:
            ResponseError: As Redis does.
        """
        self.num_calls += 1
        try:
            return self.run([as_bytes(each) for each in args])
        finally:
            self._serve_waiters()

    def script(self, text: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """Run a script."""
        self.num_calls += 1
        try:
            return _lua().run(self, text, [as_bytes(k) for k in keys], [as_bytes(a) for a in args])
        finally:
            self._serve_waiters()

    def wait(self, args: Args, answer: Callable[[Any], None]) -> Waiter | None:
        """`XREADGROUP` that waits; answered at once where there is something."""
        self.num_calls += 1
        keys = args[args.index(b"STREAMS") + 1 :]
        waiter = Waiter(args, answer, keys[: len(keys) // 2])
        return None if self._try(waiter) else waiter

    def give_up(self, waiter: Waiter) -> None:
        """Its time is over, or its client gone."""
        waiter.is_over = True
        self._waiters = [each for each in self._waiters if each is not waiter]

    def snapshot(self) -> tuple[Any, Any]:
        """What an append-only file has by now."""
        return copy.deepcopy(self._keys), dict(self._expires)

    def restore(self, saved: tuple[Any, Any] | None) -> None:
        """Start with what a file had; None has lost everything. Clients that wait are cut off."""
        self._keys, self._expires = copy.deepcopy(saved) if saved else ({}, {})
        self._waiters.clear()

    def keys(self, kind: bytes | None = None) -> list[bytes]:
        """Names of keys."""
        return [
            k
            for k in list(self._keys)
            if self._get(k) is not None and kind in (None, _KINDS[type(self._keys[k])])
        ]

    def run(self, args: Args) -> Any:
        """One command."""
        command = self._commands.get(args[0])
        if command is None:
            raise NotImplementedError(f"add {args[0].decode()} to the simulated Redis")
        return command(args)

    def _try(self, waiter: Waiter) -> bool:
        try:
            found = self.run(waiter.args)
        except ResponseError as error:
            found = error
        if found is None:
            if waiter not in self._waiters:
                self._waiters.append(waiter)
            return False
        waiter.answer(found)
        return True

    def _serve_waiters(self) -> None:
        if not self._touched:
            return
        touched, self._touched = self._touched, set()
        for waiter in list(self._waiters):
            if not waiter.is_over and not touched.isdisjoint(waiter.keys) and self._try(waiter):
                self.give_up(waiter)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _get(self, key: bytes, kind: type | None = None) -> Any:
        found = self._keys.get(key)
        if found is None:
            return None
        if key in self._expires and self._expires[key] <= self._clock() * 1000:
            self._delete(key)
            return None
        if kind is not None and type(found) is not kind:
            raise ResponseError(_WRONGTYPE)
        return found

    def _make(self, key: bytes, kind: type) -> Any:
        found = self._get(key, kind)
        if found is None:
            found = self._keys[key] = kind()
        return found

    def _delete(self, key: bytes) -> bool:
        self._expires.pop(key, None)
        return self._keys.pop(key, None) is not None

    # -- strings, keys

    def cmd_get(self, args: Args) -> Any:
        return self._get(args[1], bytes)

    def cmd_set(self, args: Args) -> Any:
        options = [each.upper() for each in args[3:]]
        if b"NX" in options and self._get(args[1]) is not None:
            return None
        self._delete(args[1])
        self._keys[args[1]] = args[2]
        for name, factor in ((b"EX", 1000), (b"PX", 1)):
            if name in options:
                self._expires[args[1]] = self._clock() * 1000 + factor * int(
                    options[options.index(name) + 1]
                )
        return Status(b"OK")

    def cmd_mget(self, args: Args) -> Any:
        found = [self._get(key) for key in args[1:]]
        return [each if type(each) is bytes else None for each in found]

    def cmd_mset(self, args: Args) -> Any:
        for key, value in zip(args[1::2], args[2::2], strict=True):
            self._delete(key)
            self._keys[key] = value
        return Status(b"OK")

    def cmd_exists(self, args: Args) -> int:
        return sum(self._get(key) is not None for key in args[1:])

    def cmd_del(self, args: Args) -> int:
        return sum(self._get(key) is not None and self._delete(key) for key in args[1:])

    cmd_unlink = cmd_del

    def cmd_ttl(self, args: Args) -> int:
        if self._get(args[1]) is None:
            return -2
        at = self._expires.get(args[1])
        return -1 if at is None else round((at - self._clock() * 1000) / 1000)

    def cmd_expire(self, args: Args) -> int:
        if self._get(args[1]) is None:
            return 0
        self._expires[args[1]] = self._clock() * 1000 + 1000 * int(args[2])
        return 1

    def cmd_type(self, args: Args) -> Any:
        found = self._get(args[1])
        return Status(b"none" if found is None else _KINDS[type(found)])

    def cmd_rename(self, args: Args) -> Any:
        if self._get(args[1]) is None:
            raise ResponseError("ERR no such key")
        expires = self._expires.pop(args[1], None)
        self._delete(args[2])
        self._keys[args[2]] = self._keys.pop(args[1])
        if expires is not None:
            self._expires[args[2]] = expires
        return Status(b"OK")

    def cmd_time(self, _: Args) -> Any:
        now = self._clock()
        return [b"%d" % int(now), b"%d" % int(now % 1 * 1e6)]

    # -- lists, hashes

    def cmd_rpush(self, args: Args) -> int:
        found = self._make(args[1], list)
        found.extend(args[2:])
        return len(found)

    def cmd_lrange(self, args: Args) -> Any:
        found = self._get(args[1], list) or []
        first, last = int(args[2]), int(args[3])
        return found[first : None if last == -1 else last + 1]

    def cmd_hset(self, args: Args) -> int:
        found = self._make(args[1], dict)
        before = len(found)
        found.update(zip(args[2::2], args[3::2], strict=True))
        return len(found) - before

    def cmd_hget(self, args: Args) -> Any:
        return (self._get(args[1], dict) or {}).get(args[2])

    def cmd_hmget(self, args: Args) -> Any:
        found = self._get(args[1], dict) or {}
        return [found.get(name) for name in args[2:]]

    def cmd_hgetall(self, args: Args) -> Any:
        return dict(self._get(args[1], dict) or {})

    def cmd_hdel(self, args: Args) -> int:
        found = self._get(args[1], dict) or {}
        count = sum(found.pop(name, None) is not None for name in args[2:])
        if not found:
            self._delete(args[1])
        return count

    # -- streams

    def cmd_xlen(self, args: Args) -> int:
        found = self._get(args[1], Stream)
        return len(found.entries) if found else 0

    def cmd_xadd(self, args: Args) -> bytes:
        stream = self._make(args[1], Stream)
        at, most = 2, None
        if args[at].upper() == b"MAXLEN":
            most, at = int(args[at + 1]), at + 2
        self._touched.add(args[1])
        now = self._now_ms()
        last = stream.last
        stream.last = (now, 0) if now > last[0] else (last[0], last[1] + 1)
        stream.entries[stream.last] = args[at + 1 :]
        while most is not None and len(stream.entries) > most:
            del stream.entries[next(iter(stream.entries))]
        return _shown(stream.last)

    def cmd_xdel(self, args: Args) -> int:
        stream = self._get(args[1], Stream)
        if stream is None:
            return 0
        return sum(stream.entries.pop(_read(each), None) is not None for each in args[2:])

    def cmd_xrange(self, args: Args) -> Any:
        stream = self._get(args[1], Stream)
        if stream is None:
            return []
        low, high = _bound(args[2], (0, 0)), _bound(args[3], (1 << 62, 0))
        most = int(args[5]) if len(args) > 5 else 1 << 62
        found: list[Any] = []
        for entry, fields in stream.entries.items():
            above = entry > low if args[2].startswith(b"(") else entry >= low
            if above and entry <= high and len(found) < most:
                found.append([_shown(entry), list(fields)])
        return found

    def cmd_xgroup(self, args: Args) -> Any:
        stream = self._get(args[2], Stream)
        if stream is None:
            if b"MKSTREAM" not in args:
                raise ResponseError("ERR The XGROUP subcommand requires the key to exist")
            stream = self._make(args[2], Stream)
        if args[3] in stream.groups:
            raise ResponseError("BUSYGROUP Consumer Group name already exists")
        stream.groups[args[3]] = Group(last=_read(args[4]))
        return Status(b"OK")

    def cmd_xack(self, args: Args) -> int:
        stream = self._get(args[1], Stream)
        group = stream and stream.groups.get(args[2])
        if not group:
            return 0
        return sum(group.pending.pop(_read(each), None) is not None for each in args[3:])

    def cmd_xreadgroup(self, args: Args) -> Any:
        name, consumer = args[2], args[3]
        at = args.index(b"STREAMS")
        options = args[4:at]
        most = int(options[options.index(b"COUNT") + 1]) if b"COUNT" in options else 1 << 62
        names = args[at + 1 :]
        keys = names[: len(names) // 2]
        groups = [self._group(key, name) for key in keys]
        reply = []
        for key, (stream, group) in zip(keys, groups, strict=True):
            found: list[Any] = []
            if stream.last > group.last:
                for entry, fields in stream.entries.items():
                    if entry > group.last and len(found) < most:
                        found.append([_shown(entry), list(fields)])
                        group.pending[entry] = [consumer, self._now_ms(), 1]
                        group.last = entry
                        if len(found) == most:
                            break
            if found:
                reply.append([key, found])
        return reply or None

    def cmd_xpending(self, args: Args) -> Any:
        _, group = self._group(args[1], args[2])
        if not group.pending:
            return []
        idle, at = 0, 3
        if args[at] == b"IDLE":
            idle, at = int(args[at + 1]), at + 2
        low, high = _bound(args[at], (0, 0)), _bound(args[at + 1], (1 << 62, 0))
        most, now = int(args[at + 2]), self._now_ms()
        found: list[Any] = []
        for entry, (consumer, since, count) in sorted(group.pending.items()):
            if low <= entry <= high and now - since >= idle and len(found) < most:
                found.append([_shown(entry), consumer, max(0, now - since), count])
        return found

    def cmd_xclaim(self, args: Args) -> Any:
        stream, group = self._group(args[1], args[2])
        consumer, idle, now, claimed = args[3], int(args[4]), self._now_ms(), []
        just_id = args[-1].upper() == b"JUSTID"
        for text in args[5:-1] if just_id else args[5:]:
            entry = _read(text)
            row = group.pending.get(entry)
            if row is None or now - row[1] < idle:
                continue
            if entry not in stream.entries:  # Redis 7 forgets it
                del group.pending[entry]
                continue
            group.pending[entry] = [consumer, now, row[2] + (not just_id)]
            claimed.append(text if just_id else [text, list(stream.entries[entry])])
        return claimed

    def _group(self, key: bytes, name: bytes) -> tuple[Stream, Group]:
        stream = self._get(key, Stream)
        group = stream and stream.groups.get(name)
        if not group:
            raise ResponseError(f"{_NOGROUP} '{key.decode()}'")
        return stream, group


class _Lua:
    """Runs scripts as Redis does: Lua 5.1, numbers are cut to integers, nil ends a list.

    One serves all twins of this process, for scripts keep nothing: `twin` is the one that asks.
    """

    twin: RedisTwin

    def __init__(self) -> None:
        self._runtime = luajit21.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        self._functions: dict[str, Any] = {}
        make = self._runtime.eval(
            b"function(call, pcall_, encode, decode) redis = {call = call, pcall = pcall_}"
            b" cjson = {encode = encode, decode = decode} end"
        )
        make(self._call, self._pcall, self._encode, self._decode)
        self._is_table = luajit21.lua_type
        self._list = self._runtime.eval(b"function(...) return {...} end")
        self._nothing = self._runtime.table()
        """Scripts only look into what they get."""

    def run(self, twin: RedisTwin, text: str, keys: Args, args: Args) -> Any:
        self.twin = twin
        function = self._functions.get(text)
        if function is None:
            source = f"function(KEYS, ARGV)\n{text}\nend".encode()
            function = self._functions[text] = self._runtime.eval(source)
        return self._from_lua(function(self._list(*keys), self._list(*args)))

    def _call(self, *args: Any) -> Any:
        found = self.twin.run([e if type(e) is bytes else _lua_bytes(e) for e in args])
        return False if found is None else self._to_lua(found)

    def _pcall(self, *args: Any) -> Any:
        try:
            return self._call(*args)
        except ResponseError as error:
            return self._runtime.table_from({b"err": str(error).encode()})

    def _to_lua(self, found: Any) -> Any:
        kind = type(found)
        if kind is bytes or kind is int:
            return found
        if kind is list:
            if not found:
                return self._nothing
            return self._list(*map(self._to_lua, found))
        if kind is dict:
            return self._list(*[each for pair in found.items() for each in pair])
        if kind is Status:
            return self._runtime.table_from({b"ok": bytes(found)})
        return False if found is None else found

    def _from_lua(self, found: Any) -> Any:
        if found is None or found is False:
            return None
        if found is True:
            return 1
        if isinstance(found, float):
            return int(found)
        if self._is_table(found) != "table":
            return found
        if (error := found[b"err"]) is not None:
            raise ResponseError(error.decode())
        if (status := found[b"ok"]) is not None:
            return status
        values, at = [], 1
        while (each := found[at]) is not None:
            values.append(self._from_lua(each))
            at += 1
        return values

    def _encode(self, table: Any) -> bytes:
        values = self._from_lua(table)
        if not values:
            return b"{}"
        return json.dumps(
            [e.decode(errors="replace") for e in values], separators=(",", ":")
        ).encode()

    def _decode(self, text: bytes) -> Any:
        return self._json_to_lua(json.loads(text))

    def _json_to_lua(self, found: Any) -> Any:
        if isinstance(found, str):
            return found.encode()
        if isinstance(found, dict):
            items = {k.encode(): self._json_to_lua(v) for k, v in found.items() if v is not None}
            return self._runtime.table_from(items)
        if isinstance(found, list):
            return self._runtime.table_from([self._json_to_lua(each) for each in found])
        return found


@cache
def _lua() -> _Lua:
    return _Lua()


def as_bytes(value: Any) -> bytes:
    """A command's word, as it is sent."""
    return value if type(value) is bytes else str(value).encode()


def _lua_bytes(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if isinstance(value, float):
        return b"%.17g" % value
    return b"%d" % value


def _shown(entry: Id) -> bytes:
    return b"%d-%d" % entry


@cache
def _read(text: bytes) -> Id:
    ms, _, number = text.partition(b"-")
    try:
        return int(ms), int(number or 0)
    except ValueError:
        raise ResponseError("ERR Invalid stream ID specified as stream command argument") from None


def _bound(text: bytes, at_end: Id) -> Id:
    return at_end if text in (b"-", b"+") else _read(text.removeprefix(b"("))
