"""What a rollout server proves, and which hosts of Redis are asked."""

import pytest

from services.errors import SettingsError
from services.host.addresses import is_allowed_host
from services.http.proof import proof, proves
from services.settings import SecuritySettings, load_settings

NONCE = "ab" * 32
URL = "http://node7:8200"


def test_a_proof_holds_for_its_token_nonce_and_address_alone() -> None:
    found = [proof("other-token", NONCE, URL), proof("token", NONCE, URL)]
    assert proves(found, "token", NONCE, URL)
    assert proves(found, "token", NONCE, URL + "/")
    assert not proves(found, "token", "cd" * 32, URL)
    assert not proves(found, "token", NONCE, "http://node7:8201")
    assert not proves(found, "no-token", NONCE, URL)
    assert not proves([], "token", NONCE, URL)


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("10.1.2.3", True),
        ("10.2.2.3", False),
        ("10.1.evil.example", False),
        ("node7", True),
        ("NODE7", True),
        ("node70", False),
        ("a.gpu.example", True),
        ("gpu.example", False),
        ("agpu.example", False),
        ("node7@evil.example", False),
        ("[fd00::7]", True),
        ("[fd01::7]", False),
    ],
)
def test_hosts_are_networks_names_and_domains(host: str, is_allowed: bool) -> None:
    allowed = ["10.1.0.0/16", "node7", "*.gpu.example", "fd00::/16"]
    assert is_allowed_host(f"http://{host}:8200", allowed) == is_allowed
    assert is_allowed_host(f"http://{host}:8200", None)
    assert not is_allowed_host(f"http://{host}:8200", [])


@pytest.mark.parametrize("text", ["10.1.*", "10.1.0.0/8", "node*", "http://node7", "*", "", "1.2"])
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no host"):
        SecuritySettings(rollout_hosts=[text])


def test_hosts_may_be_set_on_a_command_line() -> None:
    named = ['security.rollout_hosts=["node7"]', "model.path=none", "data.train=none"]
    assert load_settings([], named).security.rollout_hosts == ["node7"]
    with pytest.raises(SettingsError, match="is no host"):
        load_settings([], [*named, 'security.rollout_hosts=["10.*"]'])
