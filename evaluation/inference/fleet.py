"""Several rollout servers as one: who is asked next, and what happens when one goes away.

    up ── an answer that is the server's fault ──▶ out ── serves the policy again ──▶ up

A request whose server fails goes to another. A server that is out is looked at again after a pause
that doubles. While none is up requests wait, `patience_s` at most.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import httpx

from services.errors import (
    ConflictError,
    EngineError,
    SggError,
    UnauthorizedError,
    UnavailableError,
)
from services.http.clients.rollout import RolloutClient
from services.schemas.rollouts import RolloutRequest, RolloutResponse
from services.schemas.weights import PolicyInfo, Version
from services.settings import Settings
from services.waiting import WaitNotice, ended, growing_pauses

logger = logging.getLogger(__name__)

MAX_FAILURES = 5
"""Failures of a request, on servers that were there, after which it is taken to be at fault."""
_UNKNOWN_FIELD = "Extra inputs are not permitted"
"""What a server says of a field that its release does not have"""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_POLICY_S = 10.0
"""For the answer to what a server serves."""


@dataclass(slots=True)
class Member:
    """One server, and how it is used."""

    url: str
    client: RolloutClient
    up: bool = False
    in_flight: int = 0
    asked: int = 0


class Fleet:
    """Rollout servers that serve one policy.

    Example: `async with Fleet(settings, urls, per_server=64) as fleet: answer = await
    fleet.ask(request)`
    """

    def __init__(
        self, settings: Settings, urls: Sequence[str], *, per_server: int, registered: bool = False
    ) -> None:
        """Asks nobody yet.

        Args:
            settings: The run's: its token, and its patience, the longest wait for one answer and
                for any server to come back.
            urls: The servers', each once.
            per_server: Requests that one server has at the same time.
            registered: Whether the urls stood in Redis; see `ServiceClient`.
        """
        self._patience_s = settings.trainer.wait_timeout_s
        security = settings.security if registered else None
        self._client = partial(RolloutClient, token=settings.data_token, registered=security)
        self.members = [Member(url, self._client(url, timeout_s=self._patience_s)) for url in urls]
        self.capacity = per_server * len(self.members)
        """Requests at the same time."""
        self._per_server = per_server
        self._model = ""
        self._policy: PolicyInfo | None = None
        self._changed = asyncio.Condition()
        self._returning: set[asyncio.Task[None]] = set()
        self._out_since = time.monotonic()
        """When the last server went; of meaning while none is up."""
        self._notice = WaitNotice(self._patience_s)
        self._why = dict.fromkeys(urls, "")
        """The last failure of each server."""
        self._lost: SggError | None = None
        """Why no server is waited for any longer."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(*self._returning)
        for member in self.members:
            await member.client.aclose()

    @property
    def num_up(self) -> int:
        """Servers that are asked at present."""
        return sum(member.up for member in self.members)

    async def meet(self, *, model: str, one_version: bool = True) -> PolicyInfo:
        """What the servers serve. One that does not answer now joins when it does.

        Args:
            model: That they must have been started with.
            one_version: All must serve the same version; False while a trainer sends new ones.

        Raises:
            ConflictError: They serve another model, or different versions.
            UnavailableError: None answered in time.
        """
        self._model = model
        found = await asyncio.gather(*(self._ask_policy(member) for member in self.members))
        infos = {m.url: i for m, i in zip(self.members, found, strict=True) if i is not None}
        _check_agreement(infos, model, one_version=one_version)
        self._policy = next(iter(infos.values()), None)
        for member in self.members:
            if member.url in infos:
                member.up = True
            else:
                self._let_return(member)
        async with self._changed:
            await self._changed.wait_for(lambda: self.num_up or self._lost)
        if self._policy is None:
            raise self._lost or UnavailableError("no server")
        return self._policy

    async def ask(self, request: RolloutRequest) -> RolloutResponse:
        """An answer by whichever server is least busy.

        Raises:
            InvalidInputError: A server refused the request.
            ConflictError: A server is of an earlier release, and does not know a field of it.
            TooLargeError: The same.
            EngineError: It failed `MAX_FAILURES` times, or its connection was cut so often, where
                servers were there.
            WaitTimeoutError: The same.
            UnavailableError: No server was up for `patience_s` seconds.
        """
        num_failures = 0
        while True:
            member = await self._take()
            try:
                return await member.client.rollouts(request, retry=False)
            except SggError as error:
                if _UNKNOWN_FIELD in error.message:  # true of every image, so none is to blame
                    raise ConflictError(
                        f"{member.url} is of an earlier release, which does not know what is asked "
                        f"for: start it again with this one ({error.message})"
                    ) from error
                if not error.retryable:
                    raise
                is_away = isinstance(error, UnavailableError)
                num_failures += not is_away or _was_cut_off(error)
                if num_failures >= MAX_FAILURES:
                    raise (EngineError(error.message) if is_away else error) from error
                self._put_out(member, error)
            finally:
                await self._give_back(member)

    async def _take(self) -> Member:
        """A place at the server with the fewest requests in flight, then with the fewest so far."""
        async with self._changed:
            while True:
                if self._lost is not None:
                    raise self._lost
                if member := next_member(self.members, self._per_server):
                    member.in_flight += 1
                    member.asked += 1
                    return member
                await self._changed.wait()

    async def _give_back(self, member: Member) -> None:
        member.in_flight -= 1
        async with self._changed:
            self._changed.notify_all()

    def _put_out(self, member: Member, error: SggError) -> None:
        if not member.up:
            return  # by another of its requests
        member.up = False
        left = self.num_up
        logger.warning(
            "%s is left out (%d of %d go on): %s", member.url, left, len(self.members), error
        )
        if not left:
            self._out_since = time.monotonic()
        self._let_return(member)

    def _let_return(self, member: Member) -> None:
        task = asyncio.create_task(self._return(member))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, member: Member) -> None:
        """Until the server serves what the others serve, or nobody is waited for any longer."""
        pauses = growing_pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while not member.up and self._lost is None:
            await asyncio.sleep(next(pauses))
            fits = await self._serves_the_same(member)
            async with self._changed:
                if fits:
                    member.up = True
                    logger.warning("%s answers and is asked", member.url)
                elif not self.num_up:
                    self._wait_for(member)
                self._changed.notify_all()

    def _wait_for(self, member: Member) -> None:
        out_s = time.monotonic() - self._out_since
        if out_s > self._patience_s:
            self._lost = UnavailableError(self._nobody())
        else:
            self._notice.waited(out_s, f"no rollout server answers; {self._why[member.url]}")

    def _nobody(self) -> str:
        urls = ", ".join(member.url for member in self.members)
        return (
            f"no rollout server answered for {self._patience_s:g} s: {urls}. Start them again, "
            "then repeat the command: what is done stays"
        )

    async def _serves_the_same(self, member: Member) -> bool:
        """A server that was started anew may serve another model, or its first weights."""
        try:
            info = await self._ask_policy(member)
        except SggError as error:  # of one that answers, and not as it should
            logger.warning("%s", error)
            return False
        if info is None:
            return False
        at_least = self._policy.version if self._policy else Version()
        if _is_same_model(info.model, self._model) and not info.version < at_least:
            self._policy = self._policy or info
            return True
        logger.warning("%s stays out: it serves %s", member.url, _described(info))
        return False

    async def _ask_policy(self, member: Member) -> PolicyInfo | None:
        """None where it does not answer, or cannot sample now."""
        try:
            async with self._client(member.url, timeout_s=_POLICY_S) as client:
                info = await served_policy(client)
        except SggError as error:
            if not error.retryable:
                raise
            if error.message != self._why[member.url]:
                logger.warning("%s; trying again", error)
            self._why[member.url] = error.message
            return None
        self._why[member.url] = f"{member.url} is {info.state}"
        return info if info.state in ("ready", "updating") else None


async def served_policy(client: RolloutClient) -> PolicyInfo:
    """What a server serves; it is asked once.

    Raises:
        UnauthorizedError: It has another token, or does not prove its own; the message says where
            tokens are set.
        SggError: As `ServiceClient.get`.
    """
    try:
        return await client.get("/v1/policy", PolicyInfo, retry=False)
    except UnauthorizedError as error:
        raise UnauthorizedError(
            f"{client.url}: {error.message}; this command takes its token from the variable "
            "SGG_DATA_TOKEN, or from the file security.data_token_file"
        ) from error


def next_member(members: Sequence[Member], per_server: int) -> Member | None:
    """Fewest requests in flight, then fewest so far, then first in order; None where all are full.

    Example: 15 requests that are asked together go to 8 servers as 2, 2, 2, 2, 2, 2, 2, 1.
    """
    free = [member for member in members if member.up and member.in_flight < per_server]
    return min(free, key=lambda member: (member.in_flight, member.asked), default=None)


def _check_agreement(infos: dict[str, PolicyInfo], model: str, *, one_version: bool) -> None:
    lines = "\n".join(f"  {url}: {_described(info)}" for url, info in infos.items())
    if any(not _is_same_model(info.model, model) for info in infos.values()):
        raise ConflictError(
            f"the settings are those of the model {model}, which is not what is served; give the "
            f"--config that the servers were started with:\n{lines}"
        )
    if one_version and len({info.version.order for info in infos.values()}) > 1:
        raise ConflictError(
            f"the servers serve different versions; name those that belong together with "
            f"--server:\n{lines}"
        )


def _is_same_model(served: str, wanted: str) -> bool:
    """By name, or as the same folder on this host."""
    return served == wanted or Path(served).resolve() == Path(wanted).resolve()


def _described(info: PolicyInfo) -> str:
    return f"{info.model}, {info.version}"


def _was_cut_off(error: SggError) -> bool:
    """Whether a server was there, and the connection ended before the answer."""
    cut = httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError
    return isinstance(error.__cause__, cut)
