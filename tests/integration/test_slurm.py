"""The shipped jobs on a real Slurm: real trainer, reward service and Redis; fake GPUs and engine.

Every job loses tasks and nodes, row for row of the table in docs/deploy/slurm.md. All six run at
the same time, each driven by a thread of its own; the tests look at how each one went.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tomli_w

from deploy.slurm.layout import Job
from scene_data.toy.scenes import make_toy
from services.schemas.weights import ServerRecord
from services.settings import load_settings
from tests.live_servers import registered
from tests.processes import ROOT
from tests.slurm_cluster import (
    SlurmCluster,
    SlurmJob,
    address_of,
    slurm_cluster,
    wait_long,
    why_no_cluster,
)

NUM_NODES = 20
"""Eleven for the jobs, and one for each that is lost."""
NUM_STEPS = 16
STEP_S = 6.0
"""So long takes a step's sampling: long enough to do something to a job between two steps."""
NUM_IMAGES = 64
"""Three servers of an inference take two minutes."""
pytestmark = pytest.mark.skipif(why_no_cluster() is not None, reason=f"{why_no_cluster()}")


class Scenarios:
    """Starts jobs, and what happens to them."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        make_toy(folder / "toy", num_train=64, num_heldout=NUM_IMAGES, seed=0)

    def start(self, name: str, job: Job = "train", **changes: dict[str, object]) -> SlurmJob:
        config = self._folder / f"{name}.toml"
        config.write_text(tomli_w.dumps(self._settings(name, changes)))
        folder = self._folder / "runs" / name
        folder = folder / "inference" if job == "infer" else folder
        return SlurmJob(self.cluster, config, folder, job)

    def heterogeneous(self) -> SlurmJob:
        """A lost rollout node takes the other component along; so does a lost trainer node."""
        job = self.start(
            "heterogeneous",
            trainer={"num_ranks": 2},
            cluster={"num_rollout_servers": 2},
            deploy={"gpus_per_node": 2},
        )
        job.wait_step(3)
        again = job.submit_again()
        assert again.returncode == 1, again.stdout
        assert f"job {job.job_id} of the run in {job.folder} is RUNNING" in again.stderr
        monitor = f"http://{address_of(job.nodes('trainer')[0])}:8400/metrics"
        wait_long("the monitor", lambda: "sgg_" in metrics_at(monitor))
        self._kill_tasks(job, num_servers=2)
        self.cluster.crash(job.nodes("rollout")[0])
        job.wait_requeued()
        wait_long("its next start", lambda: job.log("trainer-0").count(": starts") == 3)
        self.cluster.crash(job.nodes("trainer")[0])
        job.wait_requeued()
        return job.wait_end()

    def homogeneous(self) -> SlurmJob:
        """A lost rollout node, with steps before and after Slurm notices; then the trainer's."""
        job = self.start(
            "homogeneous",
            cluster={"num_rollout_servers": 2},
            deploy={"kind": "homogeneous", "gpus_per_node": 1},
        )
        job.wait_step(3)
        self._kill_tasks(job, num_servers=2)
        self.cluster.crash(job.nodes("rollout")[1])
        wait_long("the loss", lambda: "Node failure" in job.log("job"))
        job.wait_step(len(job.metrics()) + 1)
        assert job.requeues() == 0
        self.cluster.crash(job.nodes("trainer")[0])
        job.wait_requeued()
        return job.wait_end()

    def single(self) -> SlurmJob:
        """A preemption, and then a lost node."""
        job = self.start("single", cluster={"num_rollout_servers": 3}, deploy={"kind": "single"})
        job.wait_step(3)
        self._kill_tasks(job, num_servers=3)
        self.cluster.slurm("scancel", "--signal=USR1", "--batch", job.job_id)
        job.wait_requeued()
        job.wait_step(len(job.metrics()) + 1)
        self.cluster.crash(job.nodes("trainer")[0])
        job.wait_requeued()
        return job.wait_end()

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
        self._kill_tasks(job, num_servers=2)
        self.cluster.crash(job.nodes("trainer")[0])
        job.wait_requeued()
        return job.wait_end()

    def sft(self) -> SlurmJob:
        """A killed rank, and then a lost node."""
        job = self.start("sft", "sft", deploy={"gpus_per_node": 1})
        wait_long("its model", lambda: "Setting accelerator" in job.log("sft-0"))
        self.cluster.kill_process(node := job.nodes("sft")[0], "sft --config")
        wait_long("its next start", lambda: job.log("sft-0").count(": starts") == 2)
        self.cluster.crash(node)
        job.wait_requeued()
        return job.wait_end()

    def infer(self) -> SlurmJob:
        """A killed server and client; a lost node, which the others outlive; then the first one."""
        job = self.start(
            "infer",
            "infer",
            rollout={"fake_tokens_per_s": 12, "max_num_seqs": 2},
            cluster={"num_rollout_servers": 3},
            deploy={"gpus_per_node": 1},
        )
        wait_long("an answer", job.predictions)
        nodes = job.nodes("rollout")
        self.cluster.kill_process(nodes[1], "serve rollout")
        self.cluster.kill_process(nodes[0], "sgg-rl infer")
        wait_long("its return", lambda: job.log("rollout-1").count("listens on") == 2)
        wait_long("the client's", lambda: job.log("infer").count(": starts") == 2)
        self.cluster.crash(nodes[2])
        wait_long("the loss", lambda: "Node failure" in job.log("job"))
        known = len(job.predictions())
        wait_long("an answer more", lambda: len(job.predictions()) > known)
        assert job.requeues() == 0
        self.cluster.crash(nodes[0])
        job.wait_requeued()
        return job.wait_end()

    def _kill_tasks(self, job: SlurmJob, *, num_servers: int) -> None:
        """The last server and the last rank: both come back, and there are more steps."""
        trainers, samplers = job.nodes("trainer"), job.nodes("rollout")
        wait_long("all servers", lambda: len(servers_of(job, trainers[0])) == num_servers)
        before = servers_of(job, trainers[0])
        gpus, known = {one.gpu for one in before}, {one.server_id for one in before}
        assert len(gpus - {None}) == num_servers, before
        last_server, last_rank = str(num_servers - 1), str(len(trainers) - 1)
        self.cluster.kill_process(samplers[-1], "serve rollout", SLURM_PROCID=last_server)
        self.cluster.kill_process(trainers[-1], "train --config", RANK=last_rank)
        wait_long("the trainer's next start", lambda: "again in 5 s" in job.log("job"))

        def is_back() -> bool:
            new = [one for one in servers_of(job, trainers[0]) if one.server_id not in known]
            return len(new) == 1 and new[0].gpu in gpus

        wait_long("the killed server's return on its GPU", is_back)
        wait_long("its checkpoint", lambda: "resumed from" in job.log("trainer-0"))
        job.wait_step(len(job.metrics()) + 1)

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
    return registered(load_settings(job.folder / "config.toml", [f"redis.url={url}"]))


def metrics_at(url: str) -> str:
    """What a service tells Prometheus; nothing while it starts."""
    try:
        return httpx.get(url, trust_env=False).text
    except httpx.TransportError:
        return ""


def assert_completed(job: SlurmJob, *, requeues: int) -> None:
    status = job.status()
    assert status["state"] == "COMPLETED", job.log("job")
    assert (status["exit_code"], status["requeues"]) == (0, requeues)


def assert_all_steps(job: SlurmJob, *, requeues: int) -> None:
    assert_completed(job, requeues=requeues)
    assert [row["step"] for row in job.metrics()] == list(range(NUM_STEPS))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, "Future[SlurmJob]"]]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder / "cluster", num_nodes=NUM_NODES, num_gpus=4) as cluster:
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
    assert_all_steps(job, requeues=2)
    assert "run heterogeneous, start 3" in job.log("job")
    assert job.log("trainer-0").count("resumed from") == 2


def test_homogeneous(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=1)
    assert "the job's script with it: queued again" in job.log("watch-0")
    assert job.log("trainer-0").count("resumed from") == 2


def test_homogeneous_secrets(scenarios: dict[str, "Future[SlurmJob]"]) -> None:
    folder = scenarios["homogeneous"].result().folder
    settings = load_settings(folder / "config.toml")
    assert settings.redis.password
    assert settings.data_token
    for name in ("secrets/redis_password", "secrets/data_token", "redis/redis.conf"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    for name in ("slurm/job.sh", "config.toml", "logs/job.log", "logs/redis.log"):
        assert settings.redis.password not in (folder / name).read_text()


def test_single(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=2)
    assert "ended with 75" in job.log("trainer-0")
    assert job.log("trainer-0").count("resumed from") == 3


def test_colocated(job: SlurmJob) -> None:
    assert_all_steps(job, requeues=1)
    assert job.log("trainer-0").count("resumed from") == 2
    assert job.nodes("trainer") == job.nodes("rollout")
    assert "waits for the server" in job.log("trainer-1")
    assert "starting without it" not in job.log("trainer-1")


def test_sft(job: SlurmJob) -> None:
    assert_completed(job, requeues=1)
    assert (job.folder / "model" / "model.safetensors").is_file()


def test_infer(job: SlurmJob) -> None:
    assert_completed(job, requeues=1)
    images = [row["image_id"] for row in job.predictions()]
    assert len(images) == len(set(images)) == NUM_IMAGES
    assert len(set(job.nodes("rollout"))) == 3
    assert "the job's script with it: queued again" in job.log("watch-0")
