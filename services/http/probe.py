"""Whether a service answers, asked without a client of its own."""

import http.client
from collections.abc import Callable
from urllib.parse import urlsplit


def http_probe(url: str, *, says: str = "") -> Callable[[], bool]:
    """A question whether `GET url` answers 200 within two seconds, with `says` in its body.

    Ignores proxy settings.
    """
    place = urlsplit(url)

    def probe() -> bool:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=2.0)
        try:
            connection.request("GET", place.path)
            response = connection.getresponse()
            return response.status == http.client.OK and says.encode() in response.read(65_536)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return probe
