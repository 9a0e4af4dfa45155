"""Who has a port, and names that lead nowhere."""

import os
import socket

import pytest

from services.errors import SettingsError
from services.host.ports import addresses_of, listen


def test_a_taken_port_names_its_process() -> None:
    with listen("127.0.0.1", 0, name="this test") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"process {os.getpid()} .*has this port") as caught:
            listen("127.0.0.1", port, name="the reward service")
    assert caught.value.message.startswith(f"the reward service cannot listen on 127.0.0.1:{port}")
    assert "choose another port" in caught.value.message
    listen("127.0.0.1", port, name="the reward service").close()


def test_a_host_whose_name_means_only_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian writes it into /etc/hosts."""
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
    with pytest.raises(SettingsError, match=r"node7 is 127\.0\.1\.1 on this machine"):
        addresses_of("node7")


def test_a_port_that_only_the_kernel_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's processes show no descriptors."""

    def refused(path: object) -> str:
        raise PermissionError(path)

    monkeypatch.setattr(os, "readlink", refused)
    with listen("127.0.0.1", 0, name="this test") as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match="a process of another user has this port"):
            listen("127.0.0.1", port, name="the reward service")
