"""Which part of a run on one machine is on which GPUs, and how the plan says it."""

from pathlib import Path

import pytest

from launcher.run_parts import run_parts, server_urls
from launcher.views.run_summary import plan_lines
from planning.placement import environment, place, placed
from planning.preflight.gpus import Gpu, visible_gpus
from services.errors import SettingsError
from services.host.ports import ReservedPorts
from services.settings import Settings, load_settings
from tests.fake_gpus import fake_gpus


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> list[Gpu]:
    """Eight."""
    folder = fake_gpus(tmp_path_factory.mktemp("gpus"), 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return visible_gpus()


def settings(
    ranks: int = 1,
    servers: int = 1,
    transport: str = "shm",
    share: float = 0.5,
    kind: str = "single",
    size: int = 1,
) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": "none"},
            "data": {"train": "none"},
            "rollout": {"gpu_memory_utilization": share, "tensor_parallel_size": size},
            "trainer": {"num_ranks": ranks, "num_steps": 7},
            "cluster": {"num_rollout_servers": servers},
            "weights": {"transport": transport},
            "deploy": {"kind": kind},
        }
    )


def indices(of: Settings, gpus: list[Gpu]) -> tuple[list[int], list[list[int]], list[int], bool]:
    """GPUs of the trainer, of each server, and idle ones; whether they are shared."""
    found = placed(of, gpus)
    servers = [[gpu.index for gpu in server] for server in found.servers]
    trainer, idle = ([gpu.index for gpu in part] for part in (found.trainer, found.idle))
    return trainer, servers, idle, found.shared


def test_ranks_and_servers_have_gpus_of_their_own(gpus: list[Gpu]) -> None:
    assert indices(settings(2, 3), gpus[:5]) == ([0, 1], [[2], [3], [4]], [], False)
    assert indices(settings(1, 1, share=0.9), gpus[:4]) == ([0], [[1]], [2, 3], False)
    assert indices(settings(1, 2, size=3), gpus) == ([0], [[1, 2, 3], [4, 5, 6]], [7], False)


def test_what_the_settings_share_is_shared(gpus: list[Gpu]) -> None:
    assert indices(settings(2, 2, "ipc"), gpus[:3]) == ([0, 1], [[0], [1]], [2], True)
    assert indices(settings(4, 2, "ipc", size=2), gpus[:4]) == (
        [0, 1, 2, 3],
        [[0, 1], [2, 3]],
        [],
        True,
    )
    assert indices(settings(2, 2, "disk", kind="colocated"), gpus[:2]) == (
        [0, 1],
        [[0], [1]],
        [],
        True,
    )


def test_one_gpu_is_shared_by_one_rank_and_one_server(gpus: list[Gpu]) -> None:
    assert indices(settings(), gpus[:1]) == ([0], [[0]], [], True)
    with pytest.raises(SettingsError, match=r"gpu_memory_utilization is 0.85.* 0.6 at most"):
        placed(settings(share=0.85), gpus[:1])
    with pytest.raises(SettingsError, match="'nccl' cannot send to the GPU that it sends from"):
        placed(settings(transport="nccl"), gpus[:1])


@pytest.mark.parametrize(
    ("hardware", "number", "shared"),
    [("a100x16", 16, False), ("24gbx32", 32, False), ("gh200x16", 16, True), ("80gbx1", 1, True)],
)
def test_a_recipe_on_shipped_hardware_uses_all_of_it(
    gpus: list[Gpu], hardware: str, number: int, shared: bool
) -> None:
    recipe = Path("configs/r1-sgg/vg150-closed-2b-zero.toml")
    wanted = load_settings([recipe, Path(f"configs/hardware/{hardware}.toml")])
    found = placed(wanted, gpus[:1] * number)
    assert (found.idle, found.shared) == ((), shared)
    with pytest.raises(SettingsError, match=f"need {number} GPUs"):
        placed(wanted, gpus[:1] * (number - 1))


@pytest.mark.parametrize(
    ("wanted", "found", "says"),
    [
        (settings(2, 1), 1, r"num_ranks = 2 and .*_servers = 1 need 3 GPUs, and 1 .*, or weights"),
        (settings(4, 4, "ipc"), 3, r"need 4 GPUs, and 3 can be seen here: set them lower$"),
        (settings(1, 2, "ipc"), 8, r"set cluster.num_rollout_servers \(2\) .* \(1\) at most"),
        (settings(2, 1, "ipc", size=4), 8, r"\(1\) times rollout.tensor_.* \(4\) to .* \(2\) at"),
        (settings(2, 2, size=4), 8, r"_servers = 2 \(rollout.tensor_parallel_size = 4 .* need 10 "),
    ],
)
def test_what_cannot_be_placed_is_refused(
    gpus: list[Gpu], wanted: Settings, found: int, says: str
) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        placed(wanted, gpus[:found])
    assert "\n" not in caught.value.message


def test_a_part_sees_its_gpus_by_number_whatever_named_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = fake_gpus(tmp_path, 4)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3aaa,1")
    found = place(settings())
    assert environment(found.trainer, placement=found)["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment(found.servers[0], placement=found)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,1")
    found = place(settings(size=2))
    assert environment(found.servers[0], placement=found)["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert environment((), placement=found)["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none is wanted
    on_cpu = place(settings(servers=2))
    assert on_cpu.servers == ((), ())
    assert environment(on_cpu.trainer, placement=on_cpu) == {}


def test_the_plan_says_where_everything_is(gpus: list[Gpu]) -> None:
    wanted = settings(2, 2)
    with ReservedPorts() as ports:
        urls = server_urls(wanted, ports)
    lines = plan_lines(wanted, placed(wanted, gpus[:5]), urls, 7)
    assert lines[0] == "watch it at http://127.0.0.1:8400/runs/run"
    assert lines[1] == "run run: 7 steps of none"
    text = "\n".join(lines)
    for words in (*urls, "GPU 2", "GPU 3", "GPU 0,1", "GPU 4 stays idle", "runs/run/logs"):
        assert words in text
    assert max(map(len, lines)) <= 80
    shared = settings(2, 2, "ipc")
    assert "rank and server share each GPU" in "\n".join(
        plan_lines(shared, placed(shared, gpus[:2]), urls, 7)
    )


def test_several_servers_have_ports_of_their_own(gpus: list[Gpu]) -> None:
    wanted = settings(1, 4)
    with ReservedPorts() as ports:
        urls = server_urls(wanted, ports)
    assert urls[0] == wanted.rollout.url
    assert len(set(urls)) == 4
    parts = run_parts(wanted, placed(wanted, gpus), urls, ["--resume"])
    assert [part.name for part in parts.services[1:]] == [f"rollout-{i}" for i in range(4)]
    assert parts.monitor is not None
    assert parts.monitor.is_spare, "a run goes on without its console"
    silent = wanted.changed(monitor={"console": False})
    assert run_parts(silent, placed(silent, gpus), urls, []).monitor is None
    numbers = [part.command[-1] for part in parts.services[1:]]
    assert [url.rpartition(":")[2] for url in urls] == numbers
    assert parts.trainer.command[-1] == "--resume"
