"""Real vLLM and its weights in the tests' own process, so that they can look inside."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollout_service.engine import GroupRequest
from rollout_service.http import app
from rollout_service.vllm import engine as vllm_engine
from rollout_service.vllm.engine import VllmEngine
from services.schemas.common import Sampling
from services.schemas.rollouts import RolloutResponse
from services.schemas.weights import WeightManifest
from services.settings import Settings
from tests.e2e import versions
from tests.e2e.conftest import workers_that_sleep
from tests.e2e.oracle import SUPPRESSED, Oracle, messages
from tests.e2e.probing_worker import ProbingExtension
from tests.updaters import Content
from weight_sync.transports.files import FileSender, delta_file
from weight_sync.transports.sender import CheckedManifest
from weight_sync.transports.uploads.spool import Spool
from weight_sync.updater import WeightUpdater


class EngineServer:
    """An engine and its weights, without the processes around them."""

    def __init__(self, settings: Settings, engine: VllmEngine, updater: WeightUpdater) -> None:
        self.settings = settings
        self.engine = engine
        self.updater = updater

    async def sample(
        self,
        image: bytes,
        adapter: str | None = None,
        *,
        n: int = 2,
        max_tokens: int = 16,
        seed: int | None = None,
    ) -> RolloutResponse:
        options = {} if seed is None else {"seed": seed}
        request = GroupRequest(
            messages=messages(),
            images=[image],
            sampling=Sampling(n=n, max_tokens=max_tokens, suppress_token_ids=SUPPRESSED, **options),
            request_id=uuid.uuid4().hex,
            adapter=adapter,
        )
        result = await self.engine.sample(request)
        return RolloutResponse(
            server_id="s",
            prompt_token_ids=result.prompt_token_ids,
            completions=result.completions,
        )

    async def stage(
        self, oracle: Oracle, *, vision_trained: bool, part: str = ""
    ) -> WeightManifest:
        version = self.updater.serving.policy_version + 1
        manifest = versions.write_shm(
            self.settings.run.name, oracle, version, vision_trained=vision_trained, part=part
        )
        await self.updater.stage(versions.stage_of(manifest))
        return manifest

    async def update(self, oracle: Oracle, *, vision_trained: bool, part: str = "") -> None:
        manifest = await self.stage(oracle, vision_trained=vision_trained, part=part)
        await self.updater.commit(versions.commit_of(manifest))

    async def take(self, sender: FileSender, checked: CheckedManifest) -> None:
        """Serve what a sender has prepared."""
        if sender.name == "http":
            file = sender.file(checked.version)
            content = (delta_file(file) if checked.manifest.delta else file).read_bytes()
            await self.updater.upload(checked.manifest.version, Content(content))
        await self.updater.stage(checked.stage(sender.name))
        await self.updater.commit(checked.commit())

    async def probe(self, method: str, *args: int) -> Any:
        return (await self.engine._llm.collective_rpc(method, args=args))[0]


def settings_of(model: Path, folder: Path, *, transport: str = "shm", **rollout: Any) -> Settings:
    """A small server's settings."""
    return Settings.model_validate(
        {
            "run": {"name": f"e2e-{uuid.uuid4().hex[:8]}", "root": str(folder)},
            "model": {"path": str(model), "dtype": "float32", "max_pixels": 224 * 224},
            "data": {"train": "unused"},
            "rollout": {
                "max_num_seqs": 16,
                "max_model_len": 512,
                "kv_cache_gib": 0.125,
                "gpu_memory_utilization": 0.3,
                "enforce_eager": True,
                **rollout,
            },
            "weights": {"transport": transport},
        }
    )


@asynccontextmanager
async def engine_server(settings: Settings) -> AsyncIterator[EngineServer]:
    """Its workers have the tests' probes."""
    make_args = vllm_engine.engine_args
    engine = app.make_engine(settings)
    assert isinstance(engine, VllmEngine)
    spool = Spool(settings)
    with pytest.MonkeyPatch.context() as patch:
        args = make_args(settings)
        args.worker_extension_cls = f"{ProbingExtension.__module__}.{ProbingExtension.__name__}"
        patch.setattr(vllm_engine, "engine_args", lambda _: args)
        with workers_that_sleep():
            await engine.start()
    updater = WeightUpdater(settings, engine, spool)
    server = EngineServer(settings, engine, updater)
    await server.probe("probe_start")
    yield server
    updater.close()
    await engine.stop()
