"""The wheel in an empty folder, beside files of the user's that are called as our packages.

The environment has the packages of this one, and of the project the wheel alone.
"""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.bundled import TOY_MODELS
from services.host.environment import child_environment
from services.host.ports import free_port
from tests.processes import OF_A_RANK, ROOT, wait_ready

USERS_OWN = (
    "cli",
    "compat",
    "console",
    "deploy",
    "launcher",
    "planning",
    "scene_graph",
    "services",
    "trainer",
)
TOOLS = tuple(
    f"deploy/{name}" for name in ("docker", "grafana", "install", "prometheus", "security")
)
"""In the source tree alone."""
BUNDLED = (
    *("assets", "configs", "constraints", "docker-compose.yml", "docker-compose.gpu.yml"),
    *("deploy/grafana/dashboards", "deploy/grafana/provisioning", "deploy/prometheus"),
    "docs/metrics.md",
)
FOREIGN = re.compile(r"^(tests|docs|benchmarks|runs|build)/|(^|/)(\.|secrets/)|token$|password$")
CLUSTER = """
[deploy]
site = "a100"
site_values = { partition = "gpu", venv = "/shared/venv" }
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sgg-rl` of an environment whose only copy of the project is the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # A line of a .pth is a folder to look in, whose own .pth files, such as an editable install's,
    # are not read.
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    shim = [str(python), "-m", "compat.torchvision_cpu", "--install"]
    subprocess.run(shim, cwd=folder, env=plain(), check=True, capture_output=True)
    return folder / "bin" / "sgg-rl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in USERS_OWN:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is the user\\'s own file')\n")
    return tmp_path


def plain() -> dict[str, str]:
    """The environment without what this test was started with."""
    ours = ("PYTHONPATH", "PYTHONSAFEPATH", *OF_A_RANK)
    return {name: value for name, value in child_environment().items() if name not in ours}


def outcome(program: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(program), *words], cwd=folder, env=plain(), capture_output=True, text=True, check=False
    )


def output(program: Path, folder: Path, *words: str) -> str:
    done = outcome(program, folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_in(*paths: str) -> set[str]:
    """All files of these files and folders of the source tree, but bytecode."""
    found = (path for name in paths for path in (ROOT / name, *(ROOT / name).rglob("*")))
    files = {str(path.relative_to(ROOT)) for path in found if path.is_file()}
    return {file for file in files if "__pycache__" not in file}


def test_the_wheel_has_what_commands_read_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    expected = files_in(*packages) - files_in(*TOOLS)
    assert files == expected | {f"services/bundle/{file}" for file in files_in(*BUNDLED)}
    assert {"deploy/slurm/job.sh.jinja", "deploy/slurm/sites/a100.toml"} <= files
    for name in TOY_MODELS:
        assert f"services/bundle/assets/{name}/model.safetensors" in files
    assert not [name for name in files if FOREIGN.search(name)]


def test_compose_finds_beside_its_files_what_it_mounts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        text = archive.read("services/bundle/docker-compose.yml").decode()
    mounted = set(re.findall(r"\./([a-z/]+[a-z])\b", text))
    assert {"configs", "deploy/prometheus", "deploy/grafana/dashboards"} <= mounted
    for path in mounted:
        assert any(name.startswith(f"services/bundle/{path}/") for name in files), path


def test_modules_come_from_the_wheel_alone(program: Path, folder: Path) -> None:
    code = "import cli, services, sys; print(cli.__file__, services.__file__, *sys.path, sep='\\n')"
    done = subprocess.run(
        [str(program.with_name("python")), "-P", "-c", code],
        cwd=folder,
        env=plain(),
        capture_output=True,
        text=True,
        check=True,
    )
    cli, services, *path = done.stdout.splitlines()
    assert Path(cli).is_relative_to(program.parents[1])
    assert Path(services).is_relative_to(program.parents[1])
    assert str(ROOT) not in path


def test_every_command_works_from_an_empty_folder(program: Path, folder: Path) -> None:
    def said(*words: str) -> str:
        return output(program, folder, *words)

    assert "reproduce" in said("--help")
    assert "wrote run.toml" in said("init", "demo")
    said("data", "make-toy", "toy-scenes", "--num-train", "8", "--num-heldout", "4")
    found = {
        check["name"]: check for check in json.loads(said("doctor", "--json", "-c", "run.toml"))
    }
    assert found["versions"]["state"] != "missing"
    assert str(program.parents[1]) in found["shipped files"]["detail"]
    assert "steps an hour" in said("plan", "--cluster", "80gbx1", "--set", "weights.transport=ipc")
    (folder / "answer.txt").write_text('{"objects": [], "relationships": []}')
    assert "answer.txt" in said("score", "answer.txt")
    (folder / "cluster.toml").write_text(CLUSTER)
    layers = ("-c", "r1-sgg/vg150-closed-2b-zero", "-c", "cluster.toml")
    script = said("slurm", "render", *layers)
    assert f"#SBATCH --chdir={folder}\n" in script
    commands = said("reproduce", "r1-sgg", "--row", "*-2b-zero", "--hardware", "80gbx1")
    run = "sgg-rl run --config r1-sgg/vg150-closed-2b-zero --config hardware/80gbx1\n"
    assert run in commands
    (folder / "mine").mkdir()
    (folder / "mine/metrics.jsonl").write_text('{"step": 0, "num_steps": 9, "entropy": 1.0}\n')
    assert "wrote 1 run to copy" in said("console", "mine", "--export", "copy")
    assert "falls slowly" in (folder / "copy/runs/mine/index.html").read_text()
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.py" for name in USERS_OWN),
        *("run.toml", "toy-scenes", "answer.txt", "cluster.toml", "mine", "copy"),
    }


@pytest.mark.parametrize("command", ["train", "run", "demo", "sft"])
def test_a_run_is_checked_from_an_empty_folder(command: str, program: Path, folder: Path) -> None:
    alone = outcome(program, folder, command)
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "there is no run.toml here: `sgg-rl init` writes one" in alone.stderr
    without_data = outcome(program, folder, command, "--config", "demo")
    assert without_data.returncode == 2
    assert "data.train: build/toy-scenes/train.parquet is not a dataset" in without_data.stderr
    assert "model.path" not in without_data.stderr, "the toy model is in the wheel"
    assert not (folder / "runs").exists()


@pytest.fixture
def reward_service(program: Path, folder: Path) -> Iterator[str]:
    """Two workers of it, with no settings at all."""
    port = free_port()
    words = ["serve", "reward", "--port", str(port), "--workers", "2"]
    url, log = f"http://127.0.0.1:{port}", folder / "reward.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(program), *words], cwd=folder, env=plain(), stdout=out, stderr=out
        )
    try:
        wait_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


def test_the_reward_service_needs_no_settings(reward_service: str) -> None:
    box = [10, 10, 60, 60]
    reference = {"objects": [{"id": "cup.1", "bbox": box}], "relationships": []}
    group = {
        "group_id": "g",
        "image_size": [100, 100],
        "box_space": "pixels:100x100",
        "reference": reference,
        "completions": [json.dumps(reference), "nothing"],
    }
    request = {"rubric": "balanced", "task": "det", "groups": [group]}
    answer = httpx.post(f"{reward_service}/v1/rewards", json=request, trust_env=False)
    assert answer.status_code == 200, answer.text
    right, wrong = answer.json()["groups"][0]["rewards"]
    assert (right["status"], right["total"]) == ("ok", 2.5)
    assert (wrong["status"], wrong["total"]) == ("no_answer", 0)
