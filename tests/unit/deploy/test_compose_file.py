"""docker-compose.yml read as plain YAML, and by `docker compose config` where that is installed."""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.host.environment import child_environment
from services.schemas.weights import Version
from services.settings import load_settings
from weight_sync.transports.shm import shm_file

ROOT = Path(__file__).parents[3]
Configured = Callable[..., dict[str, Any]]
FILE = ROOT / "docker-compose.yml"
GPU_FILE = ROOT / "docker-compose.gpu.yml"
FETCHING = {"rollout", "trainer"}
"""Parts that fetch models and data, and send curves."""
PASSED_ON = {
    "HF_TOKEN", "HF_ENDPOINT", "WANDB_API_KEY", "WANDB_MODE",
    "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy",
}  # fmt: skip
ONE_SHOT = {"prepare", "trainer"}
WRITTEN = {
    "prepare": {"secrets", "prometheus", "grafana"},
    "redis": {"queue"},
    "rollout": {"cache"},
    "monitor": {"cache"},
    "trainer": {"cache", "runs", "weights"},
    "prometheus": {"prometheus"},
    "grafana": {"grafana"},
}


def with_defaults(text: str) -> str:
    """What compose reads when nobody has set anything."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


COMPOSE: dict[str, Any] = yaml.safe_load(with_defaults(FILE.read_text()))
SERVICES: dict[str, Any] = COMPOSE["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def test_every_variable_has_a_default() -> None:
    text = FILE.read_text() + GPU_FILE.read_text()
    assert re.findall(r"\$\{\w+\}|(?<!\$)\$\w+", text) == []


def test_the_example_and_the_page_name_knobs_that_exist() -> None:
    files = (FILE.read_text() + GPU_FILE.read_text()).replace("${KNOB:-", "")
    knobs = {"COMPOSE_FILE", "COMPOSE_PROFILES", *re.findall(r"\$\{(\w+):-", files)}
    passed_on = set(re.findall(r"^ +(\w+):(?: #.*)?$", files, re.MULTILINE))
    example = (ROOT / ".env.example").read_text()
    assert not re.findall(r"^[^#\n]", example, re.MULTILINE)  # a copy of it changes nothing
    assert set(re.findall(r"^#(\w+)=", example, re.MULTILINE)) <= knobs | passed_on
    page = (ROOT / "docs" / "deploy" / "compose.md").read_text()
    named = re.findall(r"`([A-Z_]+)`", "".join(re.findall(r"^\| `.*", page, re.MULTILINE)))
    assert set(named) <= knobs | passed_on
    assert knobs - {"no_proxy"} <= set(re.findall(r"\w+", page))


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
        assert set(SERVICES[other].get("profiles", [])) <= own


@each_service
def test_only_this_machine_reaches_the_published_ports(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


def test_published_ports_differ() -> None:
    ports = [p for service in SERVICES.values() for p in service.get("ports", [])]
    assert len({port.split(":")[1] for port in ports}) == len(ports) == 5


@each_service
def test_a_secret_is_named_by_its_file_only(name: str) -> None:
    service = SERVICES[name]
    for key, value in service.get("environment", {}).items():
        if key in PASSED_ON:
            assert value is None  # the shell's or .env's own
        elif re.search("TOKEN|KEY|PASSWORD|SECRET", key.replace("GF_SECURITY", "")):
            assert key.endswith("_FILE"), key
            assert value.startswith("/secrets/")
    assert not re.search("token|password", str(service.get("command")))


@each_service
def test_mounts_are_read_only_but_for_the_owner(name: str) -> None:
    mounts = SERVICES[name].get("volumes", [])
    short = [mount.split(":") for mount in mounts if isinstance(mount, str)]
    assert {parts[0] for parts in short if parts[-1] != "ro"} == WRITTEN.get(name, set())
    assert all(mount["read_only"] for mount in mounts if not isinstance(mount, str))


@each_service
def test_images_are_pinned(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    own = image == "sgg-rl"
    assert own == ("build" in SERVICES[name])
    assert own or re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if "SGG__" in str(s)])
def test_the_environment_names_settings_that_exist(name: str) -> None:
    environment = {k: str(v) for k, v in SERVICES[name]["environment"].items() if v is not None}
    load_settings(ROOT / "configs" / "demo-compose.toml", environment=environment)


def test_parts_read_what_prepare_writes_and_start_anew_when_a_knob_changes() -> None:
    text = yaml.safe_load(FILE.read_text())["services"]
    knobs = {knob: f"${{{knob}:-}}" for knob in ("RUN_NAME", "CONFIG", "ARGS")}
    for name in ("prepare", "redis", "reward", "rollout", "trainer", "monitor"):
        assert text[name]["environment"].items() >= knobs.items(), name
        assert text[name]["environment"]["SGG_START_COMMAND"] == "docker compose up -d"
        if name != "prepare":
            assert "--config /secrets/run.toml" in text[name]["command"]


def test_weights_are_mounted_where_the_shm_transport_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    user = int(SERVICES["trainer"]["user"].partition(":")[0])
    monkeypatch.setattr("os.geteuid", lambda: user)
    for name in ("trainer", "rollout"):
        mounts = [mount.split(":") for mount in SERVICES[name]["volumes"] if isinstance(mount, str)]
        assert str(shm_file("any", Version(1, 2)).parent.parent) in {
            m[1] for m in mounts if m[0] == "weights"
        }


@pytest.fixture(scope="module")
def configured() -> Configured:
    """What `docker compose config` makes of the files: the plugin's or the program's by itself."""

    def run(*arguments: str, **knobs: str) -> "subprocess.CompletedProcess[str]":
        kept = ("PATH", "HOME", "DOCKER_CONFIG")
        environment = {k: v for k, v in child_environment().items() if k in kept} | knobs
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    def services(*flags: str, **knobs: str) -> dict[str, Any]:
        done = run("--env-file", "/dev/null", *flags, "config", "--format", "json", **knobs)
        assert (done.returncode, done.stderr) == (0, "")
        found: dict[str, Any] = json.loads(done.stdout)["services"]
        return found

    for command in (["docker", "compose"], ["docker-compose"]):
        # Its first version said other words.
        if shutil.which(command[0]) and "Compose version" in run("version").stdout:
            return services
    pytest.skip("no `docker compose` here: install Docker's compose plugin (no engine needed)")


CORE = {"prepare", "redis", "reward", "rollout", "trainer", "monitor"}
ON_GPUS = ("-f", str(FILE), "-f", str(GPU_FILE))


def test_plain_up_is_the_demo(configured: Configured) -> None:
    assert set(configured()) == CORE
    assert set(configured("--profile", "monitoring")) == CORE | {"prometheus", "grafana"}


def test_on_gpus_nothing_changes_but_where_the_two_run(configured: Configured) -> None:
    plain, gpus = configured(), configured(*ON_GPUS)
    assert set(gpus) == CORE
    changed = {
        name: {
            k for k in plain[name].keys() | gpus[name] if plain[name].get(k) != gpus[name].get(k)
        }
        for name in CORE
    }
    monitor = {"build", "image"}
    trainer = monitor | {"deploy"}
    server = trainer | {"entrypoint", "hostname", "ports"}
    others = {"monitor": monitor, "trainer": trainer, "rollout": server}
    assert changed == {**{name: set() for name in CORE}, **others}
    for name in FETCHING | {"monitor"}:
        assert gpus[name]["image"] == "sgg-rl:cuda"
        assert gpus[name]["build"]["dockerfile"] == "deploy/docker/Dockerfile.cuda"
        assert {"memory", "pids"} <= set(gpus[name]["deploy"]["resources"]["limits"])


def test_each_server_publishes_a_port_of_this_machine(configured: Configured) -> None:
    server = configured(*ON_GPUS, ROLLOUT_SERVERS="7")["rollout"]
    (port,) = server["ports"]
    assert (port["host_ip"], port["target"]) == ("127.0.0.1", 8200)
    first, last = map(int, port["published"].split("-"))
    assert last - first + 1 >= server["deploy"]["replicas"] == 7
    assert "hostname" not in server


def test_the_trainer_has_gpus_of_its_own(configured: Configured) -> None:
    parts = configured(*ON_GPUS, TRAINER_GPUS="0,1", ROLLOUT_GPUS="2,3")
    devices = {
        name: parts[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name in FETCHING
    }
    assert devices == {"trainer": ["0,1"], "rollout": ["2,3"]}


@pytest.mark.parametrize("inputs", ["folder", "./folder", str(ROOT / "folder")])
def test_inputs_is_a_folder_however_it_is_written(configured: Configured, inputs: str) -> None:
    for name, service in configured(INPUTS=inputs).items():
        found = [m for m in service.get("volumes", []) if m["target"] == "/inputs"]
        assert [(m["type"], m["source"]) for m in found] == [("bind", str(ROOT / "folder"))], name
        # Made by Docker, it would be root's and empty.
        assert not any(m["bind"].get("create_host_path") for m in found)


def test_tokens_and_proxies_reach_the_parts_that_fetch(configured: Configured) -> None:
    given = {name: f"of-{name}" for name in PASSED_ON}
    for name, service in configured(**given, NO_PROXY="mine").items():
        environment = service.get("environment", {})
        shown = {k: v for k, v in environment.items() if k in PASSED_ON}
        assert shown == (given if name in FETCHING else {})
        if name in FETCHING:
            for variable in ("NO_PROXY", "no_proxy"):
                assert {"mine", "redis", "reward", "rollout"} <= set(
                    environment[variable].split(",")
                )
                assert "" not in environment[variable].split(",")  # to some, it means every host


def test_a_build_has_proxies_and_secrets_where_they_are_given(configured: Configured) -> None:
    given = {
        "HTTPS_PROXY": "http://proxy:1",
        "TORCH_INDEX": "http://torch",
        "PIP_INDEX_URL": "http://pip",
    }
    for flags in ((), ON_GPUS):
        for name, service in configured(*flags, **given).items():
            build = service["build"]
            assert build["args"].items() >= given.items(), name
            assert [secret["source"] for secret in build["secrets"]] == ["pip.conf", "ca.pem"]
    assert not set(given) & set(configured()["trainer"]["build"]["args"])


def test_a_build_gets_every_package_and_the_module_that_prepares() -> None:
    """`.dockerignore` begins by leaving all out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    wanted = {*wheel["packages"], *wheel["force-include"]} - {"deploy"}
    assert {f"!{path}" for path in wanted} <= {*lines}
    assert "!deploy/*.py" in lines
    assert importlib.util.find_spec(SERVICES["prepare"]["entrypoint"][-1]) is not None
