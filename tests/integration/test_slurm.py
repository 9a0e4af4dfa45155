"""The shipped jobs on a real Slurm: real trainer, reward service and Redis; fake GPUs and engine.

All six jobs run at the same time, each on nodes of its own and driven by a thread of its own; the
tests look at how each one went.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tomli_w

from launcher.slurm.layout import Job
from scene_data.toy import make_toy
from services.keys import RunKeys
from services.redis_client import connect
from services.registry import Registry
from services.schemas.weights import ServerRecord
from services.settings import load_settings
from tests.processes import ROOT, wait_for
from tests.slurm_cluster import SlurmCluster, SlurmJob, address_of, slurm_cluster, why_no_cluster

NUM_STEPS = 10
STEP_S = 6.0
"""So long takes a step's sampling: long enough to do something to a job between two steps."""
pytestmark = pytest.mark.skipif(why_no_cluster() is not None, reason=f"{why_no_cluster()}")


class Scenarios:
    """Starts jobs, and what happens to them."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        make_toy(folder / "toy", num_train=64, num_heldout=16, seed=0)

    def start(self, name: str, job: Job = "train", **changes: dict[str, object]) -> SlurmJob:
        config = self._folder / f"{name}.toml"
        config.write_text(tomli_w.dumps(self._settings(name, changes)))
        folder = self._folder / "runs" / name
        folder = folder / "inference" if job == "infer" else folder
        return SlurmJob(self.cluster, config, folder, job)

    def heterogeneous(self) -> SlurmJob:
        """A killed server, a killed rank, and then a lost rollout node."""
        job = self.start(
            "heterogeneous",
            trainer={"num_ranks": 2},
            cluster={"num_rollout_servers": 2},
            deploy={"rollout_nodes": 1, "gpus_per_node": 2},
        )
        job.wait_step(1)
        again = job.submit_again()
        assert again.returncode == 1, again.stdout
        assert f"job {job.job_id} of the run in {job.folder} is RUNNING" in again.stderr
        (trainer, _), (sampler, _) = job.nodes("trainer"), job.nodes("rollout")
        before = servers_of(job, trainer)
        monitor = f"http://{address_of(trainer)}:8400/metrics"
        wait_for("the monitor", lambda: "sgg_" in metrics_at(monitor))
        assert_distinct_gpus(before, 2)
        self.cluster.kill_process(sampler, "serve rollout", SLURM_PROCID="1")
        self.cluster.kill_process(trainer, "train --config", RANK="1")
        wait_for("the trainer's next start", lambda: "again in" in job.log("job"))
        known = {server.server_id for server in before}

        def is_back() -> bool:
            new = [s for s in servers_of(job, trainer) if s.server_id not in known]
            return len(new) == 1 and new[0].gpu in {server.gpu for server in before}

        wait_for("the killed server's return on its GPU", is_back)
        self.cluster.crash(sampler)
        job.wait_requeued()
        self.cluster.revive(sampler)
        return self._ended(job)

    def homogeneous(self) -> SlurmJob:
        """A lost rollout node: there are steps before and after Slurm notices."""
        job = self.start(
            "homogeneous",
            cluster={"num_rollout_servers": 2},
            deploy={"kind": "homogeneous", "rollout_nodes": 2, "gpus_per_node": 1},
        )
        job.wait_step(1)
        assert_distinct_gpus(servers_of(job, job.nodes("trainer")[0]), 2)
        self.cluster.crash(job.nodes("rollout")[1])
        wait_for("the loss", lambda: "Node failure" in job.log("job"))
        assert len(job.metrics()) < NUM_STEPS
        job.wait_end()
        return job

    def single(self) -> SlurmJob:
        """A preemption."""
        job = self.start(
            "single",
            cluster={"num_rollout_servers": 3},
            deploy={"kind": "single"},
        )
        job.wait_step(3)
        assert_distinct_gpus(servers_of(job, job.nodes("trainer")[0]), 3)
        self.cluster.slurm("scancel", "--signal=USR1", "--batch", job.job_id)
        job.wait_requeued()
        return self._ended(job)

    def colocated(self) -> SlurmJob:
        """A lost node. Weights go over `disk`: `ipc` needs GPU memory."""
        job = self.start(
            "colocated",
            trainer={"num_ranks": 2},
            rollout={"gpu_memory_utilization": 0.4},
            cluster={"num_rollout_servers": 2},
            deploy={"kind": "colocated", "gpus_per_node": 2},
        )
        job.wait_step(3)
        assert_distinct_gpus(servers_of(job, job.nodes("trainer")[0]), 2)
        lost = job.nodes("trainer")[0]
        self.cluster.crash(lost)
        job.wait_requeued()
        self.cluster.revive(lost)
        return self._ended(job)

    def sft(self) -> SlurmJob:
        job = self.start("sft", "sft", deploy={"gpus_per_node": 1})
        job.wait_end()
        return job

    def infer(self) -> SlurmJob:
        """One of its two servers is killed, and comes back."""
        job = self.start("infer", "infer", cluster={"num_rollout_servers": 2})
        wait_for("a server", lambda: "listens on" in job.log("rollout-1"), 100)
        self.cluster.kill_process(job.nodes("rollout")[1], "serve rollout", SLURM_PROCID="1")
        job.wait_end()
        return job

    def _ended(self, job: SlurmJob) -> SlurmJob:
        wait_for("idle nodes", lambda: not job.is_in("COMPLETING"))
        job.start_now()
        job.wait_end()
        return job

    def _settings(self, name: str, changes: dict[str, dict[str, object]]) -> dict[str, object]:
        tokens_per_s = 2 * 2 * 80 / STEP_S  # groups of two completions, of about 80 tokens
        settings: dict[str, dict[str, object]] = {
            "run": {"name": name, "root": str(self._folder / "runs")},
            "model": {
                "path": str(ROOT / "assets" / "toy-start"),
                "dtype": "float32",
                "min_pixels": 12544,
                "max_pixels": 12544,
            },
            "data": {
                "train": str(self._folder / "toy" / "train.parquet"),
                "heldout": str(self._folder / "toy" / "heldout.parquet"),
                "template": "toy",
            },
            "rollout": {
                "engine": "fake",
                "fake_tokens_per_s": tokens_per_s,
                "max_model_len": 512,
                "groups_in_flight": 2,
            },
            "sampling": {"max_tokens": 96},
            "evaluation": {"max_tokens": 96},
            "trainer": {
                "num_steps": NUM_STEPS,
                "groups_per_step": 2,
                "group_size": 2,
                "tokens_per_micro_batch": 4096,
                "checkpoint_every": 2,
                "wait_timeout_s": 120.0,
            },
            "weights": {"transport": "disk"},
            "sft": {"num_steps": 2, "batch_size": 2, "micro_batch_size": 2, "warmup_steps": 0},
            "deploy": {
                "site": str(self._site()),
                "time_limit": "00:20:00",
                "sbatch": ["--exclusive"],
            },
        }
        for section, fields in changes.items():
            settings[section] = settings.get(section, {}) | fields
        return dict(settings)

    def _site(self) -> Path:
        file = self._folder / "site.toml"
        path = f"{Path(sys.executable).parent}:$PATH"
        site = {
            "description": "a cluster of network namespaces",
            "gpus_per_node": 4,
            "cpus_per_gpu": 1,
            "memory": "4000",
            "setup": [f"export PATH={path} PYTHONPATH={ROOT}"],
            "environment": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"},
        }
        file.write_text(tomli_w.dumps(site))
        return file


def servers_of(job: SlurmJob, head: str) -> list[ServerRecord]:
    """The run's registered servers."""
    url = f"redis://{address_of(head)}:6379/0"
    settings = load_settings(job.folder / "config.toml", [f"redis.url={url}"])

    async def read() -> list[ServerRecord]:
        redis = connect(settings.redis)
        try:
            return await Registry(redis, RunKeys(settings.run.name)).servers()
        finally:
            await redis.aclose()

    return asyncio.run(read())


def metrics_at(url: str) -> str:
    """What a service tells Prometheus; nothing while it starts."""
    try:
        return httpx.get(url, trust_env=False).text
    except httpx.TransportError:
        return ""


def assert_distinct_gpus(servers: list[ServerRecord], num: int) -> None:
    assert len(servers) == num, servers
    assert len({server.gpu for server in servers} - {None}) == num, servers


def assert_all_steps(job: SlurmJob, *, requeues: int) -> None:
    status = job.status()
    assert status["state"] == "COMPLETED", job.log("job")
    assert (status["exit_code"], status["requeues"]) == (0, requeues)
    assert [row["step"] for row in job.metrics()] == list(range(NUM_STEPS))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[SlurmJob]"]]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder / "cluster", num_nodes=10, num_gpus=4) as cluster:
        all_of_them = Scenarios(cluster, folder)
        stories: list[Callable[[], SlurmJob]] = [
            all_of_them.heterogeneous,
            all_of_them.colocated,
            all_of_them.homogeneous,
            all_of_them.single,
            all_of_them.infer,
            all_of_them.sft,
        ]
        with ThreadPoolExecutor(len(stories)) as threads:
            yield {story.__name__: threads.submit(story) for story in stories}


@pytest.fixture
def job(request: pytest.FixtureRequest, scenarios: dict[str, "Future[SlurmJob]"]) -> SlurmJob:
    return scenarios[request.node.name.removeprefix("test_")].result()


def test_heterogeneous(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=1)
    assert "ended with 137; starting again" in job.log("rollout-1")
    assert "run heterogeneous, start 2" in job.log("job")
    assert "resumed from" in job.log("trainer-0")


def test_homogeneous_secrets(scenarios: dict[str, "Future[SlurmJob]"]) -> None:
    folder = scenarios["homogeneous"].result().folder
    settings = load_settings(folder / "config.toml")
    assert settings.redis.password
    assert settings.data_token
    for name in ("secrets/redis_password", "secrets/data_token", "redis/redis.conf"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    for name in ("slurm/job.sh", "config.toml", "logs/job.log", "logs/redis.log"):
        assert settings.redis.password not in (folder / name).read_text()


def test_colocated(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=1)
    assert "resumed from" in job.log("trainer-0")
    assert job.nodes("trainer") == job.nodes("rollout")


def test_homogeneous(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=0)
    assert "start 2" not in job.log("job")


def test_single(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=1)
    assert "ended with 75" in job.log("trainer-0")
    assert "resumed from" in job.log("trainer-0")


def test_sft(job: SlurmJob) -> None:
    assert job.status()["state"] == "COMPLETED", job.log("job")
    assert (job.folder / "model" / "model.safetensors").is_file()


def test_infer(job: SlurmJob) -> None:
    assert job.status()["state"] == "COMPLETED", job.log("job")
    assert len((job.folder / "predictions.jsonl").read_text().splitlines()) == 16
    places = [job.log(f"rollout-{i}").partition("CUDA_VISIBLE_DEVICES=")[2][:1] for i in range(2)]
    assert sorted(places) == ["0", "1"]
    assert "ended with 137; starting again" in job.log("rollout-1")
