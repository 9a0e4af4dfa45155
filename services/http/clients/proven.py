"""What a client asks of an address that stood in Redis, before it sends anything there."""

import asyncio
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from services.errors import UnauthorizedError, WaitTimeoutError
from services.host.addresses import is_allowed_host, is_loopback
from services.http.clients.base import ServiceClient
from services.http.problems import error_from_problem
from services.http.proof import NONCE_BYTES, PROOF_PATH, proves
from services.schemas.weights import ServerProof
from services.settings import SecuritySettings

_MAX_ANSWER_BYTES = 64 * 1024


class ProvenClient(ServiceClient):
    """One server at an address that may have stood in Redis, where anybody could have put it.

    Such a server's host must be allowed, and it proves that it knows the token before anything is
    sent to it (`services.http.proof`). Without a token nothing can be proved; then only addresses
    of this machine will do, where alone servers without tokens listen.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        timeout_s: float,
        registered: SecuritySettings | None,
        pulse: bool,
    ) -> None:
        """Args: registered: Set where `url` stood in Redis; the others as `ServiceClient`'s."""
        super().__init__(url, token=token, timeout_s=timeout_s, pulse=pulse)
        self._registered = registered

    async def _headers(self) -> dict[str, str]:
        """After the proof, each time: ports change hands."""
        if self._registered is not None:
            await self._check(self._registered.rollout_hosts)
        return await super()._headers()

    async def _check(self, hosts: Sequence[str] | None) -> None:
        """Refuse an address whose host is not allowed, or whose server does not prove itself.

        Raises:
            UnauthorizedError: It is refused.
            UnavailableError: The server cannot answer now.
            WaitTimeoutError: No answer in time.
            httpx.TransportError: It is not reached.
        """
        if not is_allowed_host(self.url, hosts):
            raise UnauthorizedError(
                f"{self.url} stands in Redis as a rollout server, and is none of "
                "security.rollout_hosts: nothing is sent to it. Add its host if it is yours"
            )
        if self._token is not None:
            nonce = secrets.token_hex(NONCE_BYTES)
            if not proves(await self._ask(nonce), self._token, nonce, self.url):
                raise UnauthorizedError(
                    f"{self.url} stands in Redis as a rollout server, and does not prove that it "
                    "knows this run's token and has this rollout.url: nothing is sent to it. If it "
                    "is yours, start it with the run's tokens and this very rollout.url"
                )
        elif not is_loopback(urlsplit(self.url).hostname or ""):
            raise UnauthorizedError(
                f"{self.url} stands in Redis as a rollout server, and is beyond this machine: "
                "without tokens nothing is sent to it. Set SGG_DATA_TOKEN and SGG_ADMIN_TOKEN, or "
                "token files in [security]"
            )

    async def _ask(self, nonce: str) -> list[str]:
        """The server's proofs; none where it answers something else."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("GET", PROOF_PATH, params={"nonce": nonce}) as response,
            ):
                text = await _start_of(response)
        except TimeoutError as error:
            raise WaitTimeoutError(f"{self.url} gave no proof in {self._timeout_s:g} s") from error
        if response.status_code >= 500:
            answered, asked = text.decode(errors="replace"), f"GET {self.url}{PROOF_PATH}"
            raise error_from_problem(response.status_code, answered, asked=asked)
        try:
            return ServerProof.model_validate_json(text).proofs
        except ValidationError:
            return []


async def _start_of(response: httpx.Response) -> bytes:
    """A body, cut after `_MAX_ANSWER_BYTES`: it may come from a stranger."""
    found = bytearray()
    async for chunk in response.aiter_raw():
        found += chunk
        if len(found) > _MAX_ANSWER_BYTES:
            break
    return bytes(found[:_MAX_ANSWER_BYTES])
