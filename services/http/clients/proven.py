"""What a client asks of an address that stood in Redis, before it sends anything there."""

import asyncio
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from services.errors import UnauthorizedError, WaitTimeoutError
from services.host.addresses import is_allowed_host, is_loopback
from services.http.problems import error_from_problem
from services.http.proof import NONCE_BYTES, PROOF_PATH, proves
from services.schemas.weights import ServerProof

_MAX_ANSWER_BYTES = 64 * 1024


async def check_registered(
    http: httpx.AsyncClient,
    url: str,
    *,
    token: str | None,
    hosts: Sequence[str] | None,
    timeout_s: float,
) -> None:
    """Refuse an address whose host is not allowed, or whose server does not prove itself.

    Without a token nothing can be proved; then only addresses of this machine will do, where alone
    servers without tokens listen.

    Args:
        http: Connects to `url`; carries no token.
        url: The server's, as it stood in Redis.
        token: The server must know it.
        hosts: `security.rollout_hosts`.
        timeout_s: Longest wait for the proof.

    Raises:
        UnauthorizedError: It is refused.
        UnavailableError: The server cannot answer now.
        WaitTimeoutError: No answer in time.
        httpx.TransportError: It is not reached.
    """
    if not is_allowed_host(url, hosts):
        raise UnauthorizedError(
            f"{url} stands in Redis as a rollout server, and is none of security.rollout_hosts: "
            "nothing is sent to it. Add its host if it is yours"
        )
    if token is not None:
        nonce = secrets.token_hex(NONCE_BYTES)
        proofs = await _ask(http, url, nonce, timeout_s)
        if not proves(proofs, token, nonce, url):
            raise UnauthorizedError(
                f"{url} stands in Redis as a rollout server, and does not prove that it knows "
                "this run's token and has this rollout.url: nothing is sent to it. If it is "
                "yours, start it with the run's tokens and this very rollout.url"
            )
    elif not is_loopback(urlsplit(url).hostname or ""):
        raise UnauthorizedError(
            f"{url} stands in Redis as a rollout server, and is beyond this machine: without "
            "tokens nothing is sent to it. Set SGG_DATA_TOKEN and SGG_ADMIN_TOKEN, or token files "
            "in [security]"
        )


async def _ask(http: httpx.AsyncClient, url: str, nonce: str, timeout_s: float) -> list[str]:
    """The server's proofs; none where it answers something else."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            http.stream("GET", PROOF_PATH, params={"nonce": nonce}) as response,
        ):
            text = await _start_of(response)
    except TimeoutError as error:
        raise WaitTimeoutError(f"{url} gave no proof in {timeout_s:g} s") from error
    if response.status_code >= 500:
        answered = text.decode(errors="replace")
        raise error_from_problem(response.status_code, answered, asked=f"GET {url}{PROOF_PATH}")
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
