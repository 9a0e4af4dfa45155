"""docker-compose.yml read as plain YAML, and by `docker compose config` where that is installed."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.settings import load_settings

ROOT = Path(__file__).parents[3]
Compose = Callable[..., "subprocess.CompletedProcess[str]"]
PROFILES = ["cpu", "gpu", *(f"rollout-{i}" for i in range(2, 8))]
ONE_SHOT = {"prepare", "trainer", "trainer-gpu"}
WRITTEN = {
    "prepare": {"secrets", "prometheus", "grafana"},
    "redis": {"queue"},
    "rollout": {"cache"},
    "trainer": {"cache", "runs", "weights"},
    "prometheus": {"prometheus"},
    "grafana": {"grafana"},
}


def with_defaults(text: str) -> str:
    """What compose reads when nobody has set anything."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


COMPOSE: dict[str, Any] = yaml.safe_load(with_defaults((ROOT / "docker-compose.yml").read_text()))
SERVICES: dict[str, Any] = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def test_every_variable_has_a_default() -> None:
    bare = re.findall(r"\$\{\w+\}|(?<!\$)\$\w+", (ROOT / "docker-compose.yml").read_text())
    assert bare == []


@each_service
def test_no_service_can_do_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    user, group = map(int, service["user"].split(":"))
    assert user >= 1000
    assert group >= 1000
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    for key in ("privileged", "pid", "ipc", "devices"):
        assert key not in service
    assert service.get("network_mode") in (None, "none")


@each_service
def test_every_service_is_limited(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert limits["pids"] > 0
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert all("size=" in mount for mount in service.get("tmpfs", []))


@each_service
def test_services_come_back_and_say_how_they_are(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_SHOT:
        assert service["restart"] == ("no" if name == "prepare" else "on-failure:20")
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert "stop_grace_period" in service


@each_service
def test_services_start_after_what_they_need_is_healthy(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        expected = "completed_successfully" if other == "prepare" else "healthy"
        assert how["condition"] == f"service_{expected}"
        own = set(SERVICES[name].get("profiles", []))
        assert set(SERVICES[other].get("profiles", [])) <= own | {"gpu"}


@each_service
def test_only_this_machine_reaches_the_published_ports(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_published_ports_differ() -> None:
    ports = [p for service in SERVICES.values() for p in service.get("ports", [])]
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 12


@each_service
def test_a_secret_is_named_by_its_file_only(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if re.search("TOKEN|PASSWORD|SECRET", key.replace("GF_SECURITY", "")):
            assert key.endswith("_FILE"), key
            assert value.startswith("/secrets/")
    assert not re.search("token|password", str(service.get("command")))


@each_service
def test_mounts_are_read_only_but_for_the_owner(name: str) -> None:
    kind = re.sub(r"-(\d|gpu)$", "", name)
    mounts = [mount.split(":") for mount in SERVICES[name].get("volumes", [])]
    writable = {parts[0] for parts in mounts if parts[-1] != "ro"}
    assert writable == WRITTEN.get(kind, set())


@each_service
def test_images_are_pinned(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    own = image == "sgg-rl"
    assert own == ("build" in SERVICES[name])
    assert own or re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if "SGG__RUN__NAME" in str(s)])
def test_the_environment_names_settings_that_exist(name: str) -> None:
    environment = {k: str(v) for k, v in SERVICES[name]["environment"].items()}
    found = load_settings(ROOT / "configs" / "demo-compose.toml", environment=environment)
    assert found.redis.url == "redis://redis:6379/0"
    assert str(found.security.data_token_file) == "/secrets/data_token"


def test_weights_are_mounted_where_the_shm_transport_looks() -> None:
    for name in ("trainer", "rollout", "trainer-gpu", "rollout-7"):
        mounts = SERVICES[name]["volumes"]
        assert any(mount.startswith("weights:/dev/shm/sgg-demo") for mount in mounts), name


def test_each_server_has_a_gpu_of_its_own() -> None:
    gpus = [
        device["device_ids"]
        for service in SERVICES.values()
        for device in service["deploy"]["resources"].get("reservations", {}).get("devices", [])
    ]
    assert gpus == [[str(gpu)] for gpu in range(8)]


@pytest.fixture(scope="module")
def compose() -> Compose:
    """Docker's plugin or the program by itself (its first version said other words)."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        file = ["-f", str(ROOT / "docker-compose.yml")]
        return subprocess.run([*command, *file, *arguments], capture_output=True, text=True)

    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and "Compose version" in run("version").stdout:
            return run
    pytest.skip("no `docker compose` here: install Docker's compose plugin (no engine needed)")


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_takes_the_file(compose: Compose, profile: str) -> None:
    profiles = {"gpu", profile} if profile != "cpu" else {"cpu"}
    flags = [part for name in sorted(profiles) for part in ("--profile", name)]
    checked = compose(*flags, "config", "-q")
    assert (checked.returncode, checked.stderr) == (0, "")
    started = set(compose(*flags, "config", "--services").stdout.split())
    everywhere = {"prepare", "redis", "reward", "monitor", "prometheus", "grafana"}
    chosen = {n for n, s in SERVICES.items() if profiles & set(s.get("profiles", []))}
    assert started == everywhere | chosen


def test_plain_up_is_the_demo(compose: Compose) -> None:
    started = set(compose("config", "--services").stdout.split())
    assert {"rollout", "trainer"} <= started
    assert not {name for name in started if name.endswith("gpu")}
