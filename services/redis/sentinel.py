"""The url of a Redis that Sentinels watch."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, urlsplit

SCHEME = "redis+sentinel"
_DEFAULT_PORT = 26379


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelUrl:
    """`redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]`.

    User and password are those of Redis; the Sentinels are asked without any.

    Example: `SentinelUrl.of("redis+sentinel://a,b:26380/mymaster").service == "mymaster"`
    """

    sentinels: list[tuple[str, int]]
    service: str
    db: int
    login: dict[str, str]
    """`username` and `password`, where the url has them."""

    @classmethod
    def of(cls, url: str) -> Self | None:
        """The parts of an url; None for one that is not of Sentinels.

        Raises:
            ValueError: It is, and a part is missing or is none.
        """
        parts = urlsplit(url)
        if parts.scheme != SCHEME:
            return None
        login, _, hosts = parts.netloc.rpartition("@")
        service, _, db = parts.path.strip("/").partition("/")
        if not hosts or not service:
            raise ValueError(f"it must be {SCHEME}://host:port,host:port/service/db")
        user, _, password = login.partition(":")
        named = {"username": unquote(user), "password": unquote(password)}
        return cls(
            sentinels=[_address(host) for host in hosts.split(",")],
            service=unquote(service),
            db=int(db or 0),
            login={name: value for name, value in named.items() if value},
        )


def _address(text: str) -> tuple[str, int]:
    place = urlsplit(f"//{text}")
    if place.hostname is None:
        raise ValueError(f"{text!r} is no host")
    return place.hostname, place.port or _DEFAULT_PORT
