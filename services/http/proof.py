"""A rollout server's proof that it knows a token, asked for before the token is sent to it.

Anybody that can write to Redis can register any address as a rollout server. Over an address from
there a client first sends a nonce; the server answers with an HMAC of the nonce and of its own
`rollout.url`. A stranger does not know the key. If it asks a real server in its place, the answer
is for the real server's address and not for its own.
"""

import functools
import hashlib
import hmac
import json
from collections.abc import Sequence

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
    return hmac.new(_key(token), text.encode(), hashlib.sha256).hexdigest()


def proves(proofs: Sequence[str], token: str, nonce: str, url: str) -> bool:
    """Whether one of a server's proofs is that of `token`."""
    wanted = proof(token, nonce, url)
    return any(hmac.compare_digest(wanted, found) for found in proofs)


@functools.lru_cache(maxsize=8)
def _key(token: str) -> bytes:
    """Slow to make (50 ms): anybody may ask for proofs, and try tokens against them."""
    return hashlib.scrypt(token.encode(), salt=_SALT, n=2**14, r=8, p=1)
