"""Ports and addresses of this host."""

import errno
import socket
from contextlib import ExitStack, suppress

import psutil

from services.errors import SettingsError
from services.host.addresses import is_loopback


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class ReservedPorts(ExitStack):
    """Ports of 127.0.0.1 for processes that are about to start: bound here, and not listened on.

    As long as this is entered nobody else is given them, neither by the kernel nor by another of
    these. A process that sets SO_REUSEADDR, as servers do, can listen there.
    """

    def take(self, port: int = 0) -> int:
        """This port, or a free one: for 0, and where somebody has it."""
        reserved = self.enter_context(socket.socket())
        try:
            reserved.bind(("127.0.0.1", port))
        except OSError:
            reserved.bind(("127.0.0.1", 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not before: it would share
        taken: int = reserved.getsockname()[1]
        return taken


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def addresses_of(host: str) -> list[str]:
    """What a name or an address of this machine is bound to.

    Raises:
        SettingsError: The name is not known, or means this machine alone: then nobody else could
            connect to what listens there, and the reason would be hard to find.
    """
    if host == "localhost":
        return ["127.0.0.1"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SettingsError(
            f"this machine does not know the host {host} ({error.strerror}): write its address"
        ) from error
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    if not is_loopback(host) and all(map(is_loopback, addresses)):
        raise SettingsError(
            f"{host} is {addresses[0]} on this machine (/etc/hosts), which no other can reach: "
            "write the address of its network, or 0.0.0.0"
        )
    return addresses


def listen(host: str, port: int, *, name: str) -> socket.socket:
    """A socket that listens there.

    Args:
        host: A name or an address of this machine.
        port: 0 for a free one.
        name: What is to listen, for the message.

    Raises:
        SettingsError: It cannot; the message names the process that has the port, if it is
            known.
    """
    address = addresses_of(host)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        why = f"{error.strerror}; choose another port or host"
        if error.errno == errno.EADDRINUSE:
            why = f"{holder_of(port)} has this port: stop it, or choose another port"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "this machine has no such address: start it on the host that has it"
        raise SettingsError(f"{name} cannot listen on {host}:{port}: {why}") from error


def holder_of(port: int) -> str:
    """Which process listens on a port of this host, as far as this user may know.

    Example: `"process 4242 (sgg-rl serve reward)"`
    """
    for socket_ in psutil.net_connections("tcp"):
        if socket_.pid and socket_.status == psutil.CONN_LISTEN and socket_.laddr.port == port:
            with suppress(psutil.Error):  # gone by now
                words = " ".join(psutil.Process(socket_.pid).cmdline()).split()
                return f"process {socket_.pid} ({' '.join(words)[:60]})"
    return "a process of another user"
