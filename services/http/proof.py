"""A rollout server's proof that it knows a token, asked for before the token is sent to it.

Whoever can write to Redis can register any address as a rollout server. Over an address from there
a client first sends a nonce; the server answers with an HMAC of the nonce and of its own
`rollout.url`. A stranger does not know the key, and the answer of a real server, asked in his
place, is for the real server's address and not for his.
"""

import functools
import hashlib
import hmac
import ipaddress
import json
from collections.abc import Sequence
from urllib.parse import urlsplit

PROOF_PATH = "/v1/proof"
NONCE_BYTES = 32
_SALT = b"sgg-rl rollout server proof 1"


def proof(token: str, nonce: str, url: str) -> str:
    """HMAC-SHA256 in hex.

    Args:
        token: That the server knows.
        nonce: Of the client; new for each proof.
        url: The server's `rollout.url`, as it is in Redis.
    """
    text = json.dumps([nonce, url.rstrip("/")])
    return hmac.new(_key(token), text.encode(), hashlib.sha256).hexdigest()


def proves(proofs: Sequence[str], token: str, nonce: str, url: str) -> bool:
    """Whether one of a server's proofs is that of `token`."""
    wanted = proof(token, nonce, url)
    return any(hmac.compare_digest(wanted, found) for found in proofs)


def is_allowed_host(url: str, allowed: Sequence[str] | None) -> bool:
    """Whether a URL's host is one of `security.rollout_hosts`; None allows all."""
    host = urlsplit(url).hostname or ""
    return allowed is None or any(_matches(host, pattern.lower()) for pattern in allowed)


def is_host_pattern(text: str) -> bool:
    """Whether it is a network (`10.1.0.0/16`), an address, a name, or `*.` before a domain."""
    if _network(text) is not None:
        return True
    labels = text.removeprefix("*.").split(".")
    names = all(label.replace("-", "").isalnum() and label.isascii() for label in labels)
    return names and not labels[-1].isdigit()


def _matches(host: str, pattern: str) -> bool:
    network = _network(pattern)
    if network is not None:
        try:
            return ipaddress.ip_address(host) in network
        except ValueError:
            return False
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


@functools.lru_cache(maxsize=8)
def _key(token: str) -> bytes:
    """Slow to make (50 ms): anybody may ask for proofs, and try tokens against them."""
    return hashlib.scrypt(token.encode(), salt=_SALT, n=2**14, r=8, p=1)
