"""Two runs that start together get different ports, before either listens."""

import socket

from services.host.ports import ReservedPorts, listen


def test_a_reserved_port_is_given_to_nobody_else_and_its_process_can_listen() -> None:
    with ReservedPorts() as ours, ReservedPorts() as theirs:
        port = ours.take()
        assert theirs.take(port) != port
        assert ours.take(port) != port
        for _ in range(2):  # a server that starts again
            with listen("127.0.0.1", port, name="server"):
                socket.create_connection(("127.0.0.1", port)).close()


def test_a_port_that_somebody_listens_on_is_left_to_him() -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody, ReservedPorts() as ports:
        port = somebody.getsockname()[1]
        assert ports.take(port) not in (0, port)


def test_what_was_reserved_is_free_again() -> None:
    with ReservedPorts() as ports:
        port = ports.take()
    with ReservedPorts() as ports:
        assert ports.take(port) == port
