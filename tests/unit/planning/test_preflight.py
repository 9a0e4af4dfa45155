"""What is said of GPUs and folders before anything is loaded."""

from pathlib import Path

import pytest

from cli.commands.prepare.doctor import check_line
from planning.preflight.check import CheckResult, check
from planning.preflight.disk_space import folder_checks
from planning.preflight.folders import check_run_folder, file_system
from planning.preflight.gpus import parsed
from planning.preflight.services import token_checks
from planning.run_checks import gpu_checks, run_checks
from planning.shapes import ModelShape, model_shape
from services.errors import SettingsError
from services.schemas.weights import ServerRecord
from services.settings import Settings
from services.settings.secrets import ensure_secrets

A100 = "{index}, GPU-{index}aaa-bbb, NVIDIA A100-SXM4-40GB, 40960, 8.0, 580.95.05\n"
T4 = "{index}, GPU-{index}ccc-ddd, Tesla T4, 15360, 7.5, 580.95.05\n"
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


def problems(found: list[CheckResult]) -> dict[str, str]:
    return {f.name: f.detail for f in found if f.state in ("missing", "warning")}


@pytest.fixture
def shape() -> ModelShape:
    return model_shape("assets/toy-start")


def test_gpus_are_enough_new_enough_and_large_enough(tmp_path: Path, shape: ModelShape) -> None:
    four = settings(tmp_path, trainer={"num_ranks": 2}, cluster={"num_rollout_servers": 2})
    assert problems(gpu_checks(four, shape, GPUS, [], one_host=True)) == {}
    found = problems(gpu_checks(four, shape, OLD, [], one_host=True))
    assert "Tesla T4 (capability 7.5)" in found["bfloat16"]
    assert "need 4 GPUs, and 2 can be seen" in found["GPUs"]
    assert "GPUs" not in problems(gpu_checks(four, shape, GPUS[:2], [], one_host=False))
    large = model_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    found = problems(gpu_checks(four, large, GPUS, [], one_host=True))
    assert "the smallest has 40 GiB" in found["GPU memory"]
    assert "--dry-run" in found["GPU memory"]


def test_a_gpu_that_a_server_has_is_named(tmp_path: Path, shape: ModelShape) -> None:
    server = ServerRecord(
        server_id="node1-17", url="http://node1:8200", host="node1", gpu=GPUS[0].uuid,
        policy_version=0, state="ready", groups_in_flight=0, groups_limit=1,
        groups_done=0, tokens_per_s=0.0,
    )  # fmt: skip
    all_taken = gpu_checks(settings(tmp_path), shape, GPUS[:1], [server], one_host=False)
    assert "0 by node1-17" in problems(all_taken)["GPUs taken"]
    some = gpu_checks(settings(tmp_path), shape, GPUS, [server], one_host=False)
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
    found = problems(folder_checks(many, large, hosts=2))
    assert "trainer.keep_checkpoints lower" in found["room for checkpoints"]
    assert file_system(tmp_path) in found["file system"]
    assert file_system(Path("/proc/self")) == "proc"
    assert "file system" not in problems(folder_checks(many, large, hosts=1))


@pytest.mark.parametrize(
    ("transport", "encoding", "name", "versions"),
    [
        ("shm", "whole", "room for weights", 2),
        ("shm", "delta", "room for weights", 2.5),
        ("shm", "delta", "room for copies of weights", 3),
        ("disk", "whole", "room for checkpoints", 2),
        ("disk", "delta", "room for checkpoints", 2.5),
        ("http", "whole", "room for weights", 1 + 2 * 3),
        ("http", "delta", "room for weights", 1 + 2 * 3),
    ],
)
def test_room_for_weights(
    tmp_path: Path, transport: str, encoding: str, name: str, versions: float
) -> None:
    """What `tests/unit/weight_sync/test_file_transports.py` sees that the transports take."""
    shape = model_shape("Qwen/Qwen2.5-VL-7B-Instruct")

    def wanted_gib(of: str, encoding: str = "whole") -> float:
        weights: dict[str, object] = {"transport": of, "encoding": encoding}
        run = settings(tmp_path, weights=weights, cluster={"num_rollout_servers": 3})
        texts = {result.name: result.detail for result in folder_checks(run, shape, hosts=1)}
        return float(texts[name].split()[0]) if name in texts else 0.0

    version_gib = (2 * shape.num_parameters + 4 * 2**20) / 2**30
    assert wanted_gib(transport, encoding) - wanted_gib("lora") == pytest.approx(
        versions * version_gib, abs=0.11
    )


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
    found = run_checks(broken)
    said = problems(found)
    assert "there is no" in said["model"]
    assert f"data.train: {tmp_path}/train.parquet is not a dataset" in said["dataset"]
    assert f"chmod 600 {secret}" in said["security.data_token_file"]
    assert "security.admin_token_file" in said["tokens"]
    assert "transport 'lora'" in said["settings"]
    silent = {f.name for f in found if f.state == "info" and "not started" in f.detail}
    assert silent == {"redis server", "reward", "rollout"}


def test_an_empty_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGG_DATA_TOKEN", "a token of this run")
    monkeypatch.setenv("SGG_ADMIN_TOKEN", "")
    good, empty = token_checks()
    assert (good.name, good.state, good.detail) == ("SGG_DATA_TOKEN", "ok", "set")
    assert (empty.name, empty.state) == ("SGG_ADMIN_TOKEN", "missing")
    assert "SGG_ADMIN_TOKEN is set and empty: give it the token, or unset it" in empty.detail


def test_a_check_fits_a_terminal() -> None:
    def fail() -> str:
        raise RuntimeError("x " * 100)

    text = check_line(check("room", fail))
    assert text.startswith("MISSING  room: RuntimeError: x x")
    assert max(map(len, text.splitlines())) <= 80
