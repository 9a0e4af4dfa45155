"""What is said of GPUs and folders before anything is loaded."""

from pathlib import Path

import pytest

from cli.doctor import line
from launcher.preflight.finding import Finding, look
from launcher.preflight.folders import check_run_folder, file_system
from launcher.preflight.gpus import check_gpus, chosen, parsed, visible_gpus
from launcher.preflight.room import folder_findings
from launcher.preflight.run import gpu_findings, run_findings
from services.errors import SettingsError
from services.schemas.weights import ServerRecord
from services.secrets import ensure_secrets
from services.settings import Settings
from trainer.sizing.shapes import ModelShape, model_shape

A100 = "{index}, GPU-{index}aaa-bbb, NVIDIA A100-SXM4-40GB, 40960, 8.0\n"
T4 = "{index}, GPU-{index}ccc-ddd, Tesla T4, 15360, 7.5\n"
GPUS = parsed("".join(A100.format(index=i) for i in range(4)))
OLD = parsed("".join(T4.format(index=i) for i in range(2)))


def settings(folder: Path, **sections: dict[str, object]) -> Settings:
    base: dict[str, dict[str, object]] = {
        "run": {"root": str(folder)},
        "model": {"path": "assets/toy-start"},
        "data": {"train": str(folder / "train.parquet"), "template": "toy"},
        "weights": {"transport": "disk"},
    }
    return Settings.model_validate(base | {n: base.get(n, {}) | s for n, s in sections.items()})


def problems(found: list[Finding]) -> dict[str, str]:
    return {f.name: f.detail for f in found if f.state in ("missing", "warning")}


@pytest.fixture
def shape() -> ModelShape:
    return model_shape("assets/toy-start")


@pytest.fixture
def cuda_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with torch for GPUs, and two of them; the folder of its `nvidia-smi`."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{A100.format(index=0)}{A100.format(index=1)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("launcher.preflight.gpus.importlib.metadata.version", lambda _: "2.13.0")
    return tmp_path


def test_cuda_visible_devices_is_read_as_cuda_does() -> None:
    def names(text: str | None) -> list[int]:
        return [gpu.index for gpu in chosen(GPUS, text)]

    assert names(None) == [0, 1, 2, 3]
    assert names("") == []
    assert names("2,0") == [2, 0]
    assert names("GPU-3aaa,1") == [3, 1]
    assert names("1,7,2") == [1]


def test_a_start_without_its_gpu_is_refused(
    cuda_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_gpus(2, who="the trainer")
    with pytest.raises(SettingsError, match="the trainer needs 3 GPUs, and 2 can be seen here"):
        check_gpus(3, who="the trainer")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(SettingsError, match=r"1 can be seen here \(CUDA_VISIBLE_DEVICES=1\)"):
        check_gpus(2, who="rank 1 of the trainer, LOCAL_RANK 1,")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none is wanted
    check_gpus(1, who="a rollout server")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (cuda_packages / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []
    with pytest.raises(SettingsError, match="a rollout server needs 1 GPU, and none can be seen"):
        check_gpus(1, who="a rollout server")


def test_packages_for_cpus_ask_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "launcher.preflight.gpus.importlib.metadata.version"
    monkeypatch.setattr(name, lambda _: "2.13.0+cpu")
    check_gpus(8, who="the trainer")


def test_gpus_are_enough_new_enough_and_large_enough(tmp_path: Path, shape: ModelShape) -> None:
    four = settings(tmp_path, trainer={"num_ranks": 2}, cluster={"num_rollout_servers": 2})
    assert problems(gpu_findings(four, shape, GPUS, [], one_host=True)) == {}
    found = problems(gpu_findings(four, shape, OLD, [], one_host=True))
    assert "Tesla T4 (capability 7.5)" in found["bfloat16"]
    assert "need 4 GPUs, and 2 can be seen" in found["GPUs"]
    assert "GPUs" not in problems(gpu_findings(four, shape, GPUS[:2], [], one_host=False))
    large = model_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    found = problems(gpu_findings(four, large, GPUS, [], one_host=True))
    assert "the smallest has 40 GiB" in found["GPU memory"]
    assert "--dry-run" in found["GPU memory"]


def test_a_gpu_that_a_server_has_is_named(tmp_path: Path, shape: ModelShape) -> None:
    server = ServerRecord(
        server_id="node1-17", url="http://node1:8200", host="node1", gpu=GPUS[0].uuid,
        policy_version=0, state="ready", groups_in_flight=0, groups_limit=1,
        groups_done=0, tokens_per_s=0.0,
    )  # fmt: skip
    all_taken = gpu_findings(settings(tmp_path), shape, GPUS[:1], [server], one_host=False)
    assert "0 by node1-17" in problems(all_taken)["GPUs taken"]
    some = gpu_findings(settings(tmp_path), shape, GPUS, [server], one_host=False)
    assert "GPUs taken" not in problems(some)


def test_an_unwritable_folder_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists(), "nothing is left"
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"cannot be written .* set run\.root") as caught:
        check_run_folder(tmp_path / "file" / "run")
    assert "\n" not in caught.value.message


def test_room_and_shared_file_systems(tmp_path: Path) -> None:
    large = model_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    many = settings(tmp_path, trainer={"keep_checkpoints": 10_000})
    found = problems(folder_findings(many, large, hosts=2))
    assert "trainer.keep_checkpoints lower" in found["room for checkpoints"]
    assert file_system(tmp_path) in found["file system"]
    assert file_system(Path("/proc/self")) == "proc"
    assert "file system" not in problems(folder_findings(many, large, hosts=1))


def test_what_a_run_lacks_is_all_said_at_once(tmp_path: Path) -> None:
    secret = ensure_secrets(tmp_path / "secrets").data_token
    secret.chmod(0o644)
    broken = settings(
        tmp_path,
        model={"path": str(tmp_path / "no-model")},
        redis={"url": "redis://127.0.0.1:1/0"},
        rollout={"url": "http://0.0.0.0:1"},
        reward={"url": "http://127.0.0.1:1"},
        security={"data_token_file": str(secret)},
        lora={"rank": 4},
    )
    found = run_findings(broken)
    said = problems(found)
    assert "there is no" in said["model"]
    assert "data.train: there is no" in said["dataset"]
    assert f"chmod 600 {secret}" in said["security.data_token_file"]
    assert "security.admin_token_file" in said["tokens"]
    assert "transport 'lora'" in said["settings"]
    silent = {f.name for f in found if f.state == "info" and "not started" in f.detail}
    assert silent == {"redis server", "reward", "rollout"}


def test_a_finding_fits_a_terminal() -> None:
    def fail() -> str:
        raise RuntimeError("x " * 100)

    text = line(look("room", fail))
    assert text.startswith("MISSING  room: RuntimeError: x x")
    assert max(map(len, text.splitlines())) <= 80
