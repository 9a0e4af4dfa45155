"""Proofs that one knows a token, in place of the token: a rollout server's, and a browser's.

Anybody that can write to Redis can register any address as a rollout server. Over an address from
there a client first sends a nonce; the server answers with an HMAC of the nonce and of its own
`rollout.url`. A stranger does not know the key. If it asks a real server in its place, the answer
is for the real server's address and not for its own.

A browser gives the token once, and keeps a proof with a date as a cookie (`services.http.login`).
"""

import functools
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence

PROOF_PATH = "/v1/proof"
NONCE_BYTES = 32
_SALT = b"sgg-rl rollout server proof 1"


def proof(token: str, nonce: str, url: str) -> str:
    """HMAC-SHA256 in hex.

    Args:
        token: The server knows it.
        nonce: The client's; new for each proof.
        url: The server's `rollout.url`, as it is in Redis.
    """
    text = json.dumps([nonce, url.rstrip("/")])
    return _sign(token, text)


def proves(proofs: Sequence[str], token: str, nonce: str, url: str) -> bool:
    """Whether one of a server's proofs is that of `token`."""
    wanted = proof(token, nonce, url)
    return any(hmac.compare_digest(wanted, found) for found in proofs)


def cookie_name(token: str) -> str:
    """Another one for each token: runs on one host do not take each other's place."""
    return "sgg-" + _sign(token, "cookie")[:8]


def login_cookie(token: str, until: int) -> tuple[str, str]:
    """Name and value of the cookie of a browser that knows the token.

    Args:
        token: The service's.
        until: Unix time in seconds from which on it is worth nothing.
    """
    return cookie_name(token), f"{until}.{_sign(token, f'login until {until}')}"


def is_logged_in(cookies: Mapping[str, str], token: str, now: float) -> bool:
    """Whether a browser's cookies show that it knows the token.

    Args:
        cookies: By name, as the browser sent them.
        token: The service's.
        now: Unix time in seconds.
    """
    value = cookies.get(cookie_name(token), "")
    until = value.partition(".")[0][:12]
    if not (until.isascii() and until.isdigit()) or int(until) <= now:
        return False
    return hmac.compare_digest(value.encode(), login_cookie(token, int(until))[1].encode())


def _sign(token: str, text: str) -> str:
    return hmac.new(_key(token), text.encode(), hashlib.sha256).hexdigest()


@functools.lru_cache(maxsize=8)
def _key(token: str) -> bytes:
    """Slow to make (50 ms): anybody may ask for proofs, and try tokens against them."""
    return hashlib.scrypt(token.encode(), salt=_SALT, n=2**14, r=8, p=1)
