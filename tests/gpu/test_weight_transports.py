"""Weight updates with CUDA: a real vLLM server, the trainer's publisher, transformers as oracle.

Run it with `pytest tests/gpu`; the marker `gpu` selects it elsewhere. `ipc` shares one GPU between
this process and the server, `nccl` needs two, and three where the server has two.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.http.clients.rollout import RolloutClient
from services.schemas.rollouts import RolloutResponse
from services.schemas.weights import Transport
from services.settings import Settings
from tests.e2e.conftest import ROOT, RunningServer, running_server
from tests.e2e.oracle import TOLERANCE, Oracle, largest_gap, picture, request
from tests.live_servers import registered
from tests.processes import wait_for
from weight_sync.publishing.publisher import WeightPublisher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NOISE = 0.05


@pytest.fixture(scope="module")
def one_gpu(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on the GPU that this process uses."""
    yield from serve(redis_url, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def second_gpu(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on a GPU of its own."""
    if torch.cuda.device_count() < 2:
        pytest.skip("nccl needs two GPUs")
    torch.cuda.init()  # before the variable is changed, which is meant for the server
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "1")
        yield from serve(redis_url, tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="module")
def two_gpus(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server on two GPUs of its own."""
    if torch.cuda.device_count() < 3:
        pytest.skip("a server on two GPUs beside this process needs three")
    torch.cuda.init()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
        yield from serve(redis_url, tmp_path_factory.mktemp("two"), size=2)


def serve(redis_url: str, folder: Path, size: int = 1) -> Iterator[RunningServer]:
    model = ROOT / "assets/toy-start"
    several = {"tensor_parallel_size": size}
    with running_server(model, redis_url, folder, rollout=several) as server:
        wait_for("a record", lambda: bool(registered(server.settings)))
        yield server


@pytest.fixture(scope="module")
def base() -> Oracle:
    return Oracle(oracle_settings())


@pytest.fixture(scope="module")
def other() -> Oracle:
    return Oracle(oracle_settings(), noise=NOISE)


def oracle_settings() -> Settings:
    """As the server's, for the processor's limits."""
    model = {"path": str(ROOT / "assets/toy-start"), "dtype": "float32", "max_pixels": 224 * 224}
    return Settings.model_validate({"model": model, "data": {"train": "unused"}})


@pytest.mark.parametrize("transport", ["shm", "disk", "http", "ipc"])
def test_on_one_gpu(
    one_gpu: RunningServer, base: Oracle, other: Oracle, transport: Transport
) -> None:
    update_and_compare(one_gpu, base, other, transport)


def test_from_gpu_to_gpu(second_gpu: RunningServer, base: Oracle, other: Oracle) -> None:
    update_and_compare(second_gpu, base, other, "nccl")


@pytest.mark.parametrize("transport", ["shm", "nccl"])
def test_a_server_on_two_gpus(
    two_gpus: RunningServer, base: Oracle, other: Oracle, transport: Transport
) -> None:
    update_and_compare(two_gpus, base, other, transport)


def update_and_compare(
    server: RunningServer, base: Oracle, other: Oracle, transport: Transport
) -> None:
    """Other weights, then the first ones again; each time the server samples from exactly them."""
    settings = server.settings.model_copy(
        update={"weights": server.settings.weights.model_copy(update={"transport": transport})}
    )
    incarnation = asyncio.run(serving_incarnation(server)) + 1
    publisher = WeightPublisher(settings, incarnation)
    try:
        for version, oracle in enumerate((other, base, other, base), start=1):
            weights = ((n, p.detach().contiguous()) for n, p in oracle.model.named_parameters())
            assert publisher.begin(weights, version).result() == 1, (
                "at once, not over HTTP afterwards"
            )
            sampled, greedy = asyncio.run(answers(server))
            (span,) = sampled.completions[0].policy_versions
            assert span.policy_version == version
            image = picture(1)
            assert largest_gap(oracle, image, sampled) < TOLERANCE
            assert largest_gap(base if oracle is other else other, image, sampled) > TOLERANCE
            likeliest = oracle.logprobs(image, greedy.completions[0].token_ids).max(-1).values
            chosen = oracle.of(image, greedy.completions[0])
            assert (likeliest - chosen).max() < TOLERANCE
    finally:
        publisher.close()


async def serving_incarnation(server: RunningServer) -> int:
    async with RolloutClient(server.url) as client:
        return (await client.policy()).incarnation


async def answers(server: RunningServer) -> tuple[RolloutResponse, RolloutResponse]:
    """Sampled, and greedy."""
    image = picture(1)
    async with RolloutClient(server.url) as client:
        return (
            await client.rollouts(request(image, n=4)),
            await client.rollouts(request(image, temperature=0.0)),
        )
