"""The rollout service and the monitor against their own OpenAPI pages."""

from pathlib import Path

from monitor_service.app import Monitor
from rollout_service.fake.engine import FakeEngine
from services.host.ports import free_port
from tests.live_servers import cluster_settings, served, serving
from tests.openapi_fuzzing import assert_as_documented
from tests.shm_versions import ShmRun


def test_the_rollout_service_answers_as_its_page_says(
    tmp_path: Path, shm_run: ShmRun, redis_url: str
) -> None:
    settings = cluster_settings(tmp_path, shm_run.name, redis_url, "shm")
    engine = FakeEngine(tokens_per_s=1e7, max_model_len=4096)
    with serving(settings, engine) as server:
        assert_as_documented(
            server.url, "admin-secret", tmp_path, num_operations=14, max_examples=25
        )
        assert server.is_ready()


def test_the_monitor_answers_as_its_page_says(
    tmp_path: Path, shm_run: ShmRun, redis_url: str
) -> None:
    settings = cluster_settings(tmp_path, shm_run.name, redis_url, "shm")
    url = f"http://127.0.0.1:{free_port()}"
    monitor = settings.monitor.model_copy(update={"url": url})
    with served(Monitor(settings.model_copy(update={"monitor": monitor})).app, url):
        assert_as_documented(url, "data-secret", tmp_path, num_operations=4, max_examples=25)
