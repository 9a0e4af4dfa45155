#!/usr/bin/env -S python3 -IS
"""Is the service of this container ready? Exit 0 when it is; else 1, with the reason.

    ready http://HOST:PORT/readyz
    ready redis://HOST:PORT PASSWORD_FILE

For health checks: only the standard library, so that it costs little every few seconds.
"""

import http.client
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


def http_problem(host: str, port: int, path: str) -> str | None:
    """What a service's `/readyz` says, or None when it is ready."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read(2000).decode(errors="replace")
    return None if response.status == 200 else text


def redis_problem(host: str, port: int, password: str) -> str | None:
    """What Redis answers to a PING, or None when that is PONG."""
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answers = connection.makefile("rb")
        said = [answers.readline().strip().decode() for _ in range(2)]
    return None if said == ["+OK", "+PONG"] else " ".join(said)


def main(url: str, password_file: str = "") -> int:
    """Ask, print the problem, and return the exit code."""
    place = urlsplit(url)
    host, port = place.hostname or "", place.port or 0
    try:
        if place.scheme == "redis":
            problem = redis_problem(host, port, Path(password_file).read_text().strip())
        else:
            problem = http_problem(host, port, place.path)
    except OSError as error:
        problem = str(error)
    if problem:
        sys.stdout.write(f"{problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
