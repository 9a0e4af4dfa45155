"""Weight updates of real vLLM in this process: its caches, its failures, its adapters."""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rollout_service import app, vllm_engine
from rollout_service.transports.choice import Transports
from rollout_service.transports.lora import write_config
from rollout_service.transports.spool import Spool
from rollout_service.updates import WeightUpdater
from rollout_service.vllm_engine import VllmEngine
from services.errors import EngineError
from services.schemas.common import Sampling
from services.schemas.rollouts import RolloutResponse
from services.schemas.weights import AdapterConfig, WeightManifest
from services.settings import Settings
from services.weights import shm_file
from tests.e2e import versions
from tests.e2e.oracle import SUPPRESSED, TOLERANCE, Oracle, largest_gap, messages, picture
from tests.e2e.probing_worker import ProbingExtension
from tests.updaters import pieces

pytestmark = pytest.mark.asyncio(loop_scope="module")
ADAPTER = AdapterConfig(rank=4, alpha=8.0)
FAR = 20 * TOLERANCE


class Server:
    """An engine and its weights, without the processes around them."""

    def __init__(self, settings: Settings, engine: VllmEngine, updater: WeightUpdater) -> None:
        self.settings = settings
        self.engine = engine
        self.updater = updater

    async def sample(self, image: bytes, adapter: str | None = None) -> RolloutResponse:
        options = {"n": 2, "max_tokens": 16, "suppress_token_ids": SUPPRESSED}
        result = await self.engine.sample(
            messages(), [image], Sampling(**options), request_id=uuid.uuid4().hex, adapter=adapter
        )
        return RolloutResponse(
            server_id="s",
            prompt_token_ids=result.prompt_token_ids,
            completions=result.completions,
        )

    async def stage(self, oracle: Oracle, *, vision_trained: bool) -> WeightManifest:
        version = self.updater.serving.policy_version + 1
        manifest = versions.write_shm(
            self.settings.run.name, oracle, version, vision_trained=vision_trained
        )
        await self.updater.stage(versions.stage_of(manifest))
        return manifest

    async def update(self, oracle: Oracle, *, vision_trained: bool) -> None:
        manifest = await self.stage(oracle, vision_trained=vision_trained)
        await self.updater.commit(versions.commit_of(manifest))

    async def probe(self, method: str, *args: int) -> Any:
        return (await self.engine._llm.collective_rpc(method, args=args))[0]


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("updates")
    settings = Settings.model_validate(
        {
            "run": {"name": f"e2e-{uuid.uuid4().hex[:8]}", "root": str(folder)},
            "model": {"path": str(tiny_model), "dtype": "float32", "max_pixels": 224 * 224},
            "data": {"train": "unused"},
            "rollout": {
                "max_num_seqs": 16,
                "max_model_len": 512,
                "kv_cache_gib": 0.125,
                "enforce_eager": True,
                "adapters": {"named": str(folder / "named")},
            },
        }
    )
    adapter = versions.random_adapter(Oracle(settings), ADAPTER.rank, seed=5)
    (folder / "named").mkdir()
    versions.adapter_file(folder / "named", adapter)
    write_config(folder / "named", ADAPTER, adapter)
    yield settings
    shutil.rmtree(shm_file(settings.run.name, 0, 0).parent, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(settings: Settings) -> AsyncIterator[Server]:
    make_args = vllm_engine._engine_args
    engine = app.make_engine(settings)
    assert isinstance(engine, VllmEngine)
    with pytest.MonkeyPatch.context() as patch:
        args = make_args(settings)
        args.worker_extension_cls = f"{ProbingExtension.__module__}.{ProbingExtension.__name__}"
        patch.setattr(vllm_engine, "_engine_args", lambda _: args)
        await engine.start()
    updater = WeightUpdater(engine, Transports(settings, engine, Spool(settings)))
    server = Server(settings, engine, updater)
    await server.probe("probe_start")
    yield server
    updater.close()
    await engine.stop()


async def test_new_vision_weights_move_the_answers_about_the_same_image(server: Server) -> None:
    image = picture(1)
    base, other = Oracle(server.settings), versions.perturbed(server.settings, "visual.", seed=1)
    assert largest_gap(base, image, await server.sample(image)) < TOLERANCE
    await server.update(other, vision_trained=True)
    answer = await server.sample(image)
    assert largest_gap(other, image, answer) < TOLERANCE
    assert largest_gap(base, image, answer) > FAR


async def test_a_frozen_vision_tower_does_not_encode_again(server: Server) -> None:
    image = picture(2)
    oracle = versions.perturbed(server.settings, "visual.", seed=2)
    await server.update(oracle, vision_trained=True)
    await server.sample(image)
    encoded = await server.probe("probe_encodings")
    versions.perturb(oracle, "language_model.", seed=3)
    await server.update(oracle, vision_trained=False)
    assert largest_gap(oracle, image, await server.sample(image)) < TOLERANCE
    assert await server.probe("probe_encodings") == encoded
    await server.sample(picture(3))
    assert await server.probe("probe_encodings") == encoded + 1, "the probe counts"


async def test_a_vision_tower_that_is_called_frozen_but_is_another_encodes_again(
    server: Server,
) -> None:
    image = picture(4)
    await server.sample(image)
    other = versions.perturbed(server.settings, "visual.", seed=4)
    await server.update(other, vision_trained=False)
    assert largest_gap(other, image, await server.sample(image)) < TOLERANCE


@pytest.mark.parametrize("where", ["load", "finish"])
async def test_a_load_that_fails_half_way_is_tried_again(server: Server, where: str) -> None:
    """Also where a layer has got one of its tensors: the second attempt brings that one again."""
    other = versions.perturbed(server.settings, "", seed=6)
    manifest = await server.stage(other, vision_trained=True)
    if where == "load":
        await server.probe("probe_fail_loads", 1)
    else:
        await server.probe("probe_fail_finish")
    await server.updater.commit(versions.commit_of(manifest))
    assert server.updater.state == "ready"
    assert largest_gap(other, picture(5), await server.sample(picture(5))) < TOLERANCE


async def test_a_server_that_failed_twice_is_seeded_again_over_http(server: Server) -> None:
    image = picture(6)
    other = versions.perturbed(server.settings, "", seed=7)
    manifest = await server.stage(other, vision_trained=True)
    await server.probe("probe_fail_loads", 2)
    with pytest.raises(EngineError, match="no memory"):
        await server.updater.commit(versions.commit_of(manifest))
    assert server.updater.state == "quarantined"
    waiting = asyncio.create_task(server.sample(image))
    file = shm_file(server.settings.run.name, 1, manifest.policy_version)
    await server.updater.upload(1, manifest.policy_version, pieces(file.read_bytes(), 65_536))
    file.unlink()
    await server.updater.stage(versions.stage_of(manifest, "http"))
    assert not waiting.done()
    await server.updater.commit(versions.commit_of(manifest))
    answer = await waiting
    assert largest_gap(other, image, answer) < TOLERANCE
    spans = {s.policy_version for c in answer.completions for s in c.policy_versions}
    assert spans == {manifest.policy_version}


async def test_a_named_adapter_is_over_the_weights_of_now(server: Server) -> None:
    """VLLM forgets adapters at every update, and reads their folders again."""
    image = picture(7)
    adapter = versions.random_adapter(Oracle(server.settings), ADAPTER.rank, seed=5)
    for seed in (8, 9):
        oracle = versions.perturbed(server.settings, "", seed=seed)
        await server.update(oracle, vision_trained=True)
        assert largest_gap(oracle, image, await server.sample(image)) < TOLERANCE
        versions.merge(oracle, adapter, ADAPTER)
        assert largest_gap(oracle, image, await server.sample(image, "named")) < TOLERANCE
