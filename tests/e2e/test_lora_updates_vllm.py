"""A policy that is an adapter: its updates, by real vLLM on CPU, spread over two workers.

`test_lora_training.py` has one worker.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from services.errors import InvalidInputError, NotFoundError
from services.schemas.weights import AdapterConfig, Version, WeightManifest
from services.settings.training import LoraSettings
from tests.e2e import versions
from tests.e2e.conftest import needs_gpus
from tests.e2e.engine_server import EngineServer, engine_server, settings_of
from tests.e2e.oracle import TOLERANCE, Oracle, largest_gap, picture
from tests.updaters import Content
from trainer.policy.adapter import add_adapter
from trainer.policy.export import exported, exported_parameters

pytestmark = pytest.mark.asyncio(loop_scope="module")
CONFIG = AdapterConfig(rank=4, alpha=8.0)
FAR = 20 * TOLERANCE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineServer]:
    folder = tmp_path_factory.mktemp("lora")
    needs_gpus(2)
    settings = settings_of(tiny_model, folder, transport="lora", tensor_parallel_size=2)
    async with engine_server(settings) as server:
        yield server


def merged(server: EngineServer, adapter: versions.Tensors) -> Oracle:
    oracle = Oracle(server.settings)
    versions.merge(oracle, adapter, CONFIG)
    return oracle


async def stage(
    server: EngineServer,
    adapter: versions.Tensors,
    folder: Path,
    config: AdapterConfig = CONFIG,
) -> WeightManifest:
    version = server.updater.serving.policy_version + 1
    manifest = versions.manifest_of(adapter, version, adapter=config)
    content = versions.adapter_file(folder, adapter)
    await server.updater.upload(Version(1, version), Content(content))
    await server.updater.stage(versions.stage_of(manifest, "lora"))
    return manifest


async def test_requests_in_flight_go_over_to_the_new_adapter(
    server: EngineServer, tmp_path: Path
) -> None:
    """From the very first commit on: they are sampled with an adapter that changes nothing."""
    image = picture(1)
    base = Oracle(server.settings)
    assert largest_gap(base, image, await server.sample(image)) < TOLERANCE
    oracles = {0: base}
    for seed in (1, 2):
        adapter = versions.random_adapter(base, CONFIG.rank, seed)
        manifest = await stage(server, adapter, tmp_path)
        version = manifest.policy_version
        oracles[version] = merged(server, adapter)
        running = asyncio.create_task(server.sample(image, n=8, max_tokens=200))
        await asyncio.sleep(0.5)
        await server.updater.commit(versions.commit_of(manifest))
        answer = await running
        spans = [s for c in answer.completions for s in c.policy_versions]
        assert {s.policy_version for s in spans} == {version - 1, version}
        for completion in answer.completions[:4]:
            for span in completion.policy_versions:
                given = torch.tensor(completion.rollout_logprobs)[span.start : span.end]
                expected = oracles[span.policy_version].of(image, completion)
                gap = (given - expected[span.start : span.end]).abs().max()
                assert gap < TOLERANCE
        after = await server.sample(image)
        assert largest_gap(oracles[version], image, after) < TOLERANCE
        assert largest_gap(oracles[version - 1], image, after) > FAR


async def test_an_adapter_goes_from_the_trainer_to_the_sampler(
    server: EngineServer, tmp_path: Path
) -> None:
    """As PEFT computes with it, so does vLLM; a fresh one changes nothing."""
    image, base, policy = picture(3), Oracle(server.settings), Oracle(server.settings)
    lora = LoraSettings(rank=CONFIG.rank, alpha=CONFIG.alpha)
    add_adapter(policy.model, server.settings.model_copy(update={"lora": lora}))
    for noise in (0.0, 0.1):
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=noise)
        manifest = await stage(server, adapter_of(policy), tmp_path)
        await server.updater.commit(versions.commit_of(manifest))
        answer = await server.sample(image)
        assert largest_gap(policy, image, answer) < TOLERANCE
        assert (largest_gap(base, image, answer) > FAR) == bool(noise)


def adapter_of(policy: Oracle) -> versions.Tensors:
    """As the engine exports it."""
    parameters = exported_parameters(policy.model, adapter_only=True, trainable_only=True)
    whole = nullcontext()
    return dict(
        exported(
            parameters,
            gather=lambda _: whole,
            bucket_bytes=2**20,
            dtype=torch.float32,
            wanted=True,
        )
    )


async def test_adapters_that_do_not_fit_are_refused_and_the_last_one_serves_on(
    server: EngineServer, tmp_path: Path
) -> None:
    image = picture(2)
    base = Oracle(server.settings)
    good = versions.random_adapter(base, CONFIG.rank, seed=3)
    manifest = await stage(server, good, tmp_path)
    await server.updater.commit(versions.commit_of(manifest))
    name = next(name for name in good if "lora_B" in name)
    vision = {
        f"base_model.model.model.visual.blocks.0.attn.proj.lora_{half}.weight": torch.zeros(shape)
        for half, shape in (("A", (4, 128)), ("B", (128, 4)))
    }
    unknown = {key.replace("layers.0", "layers.9"): value for key, value in good.items()}
    for wrong, config, message in (
        (good | {name: good[name][1:]}, CONFIG, "of shape"),
        (unknown, CONFIG, "not there"),
        (good | vision, CONFIG, "language model only"),
        ({n: v for n, v in good.items() if n != name}, CONFIG, "alone"),
        (good, AdapterConfig(rank=8, alpha=8.0), "the manifest says 8"),
        (versions.random_adapter(base, 32, 1), AdapterConfig(rank=32, alpha=8.0), "max_lora_rank"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            await stage(server, wrong, tmp_path, config)
    whole = versions.manifest_of({n: p.detach() for n, p in base.model.named_parameters()}, 9)
    with pytest.raises(InvalidInputError, match="does not take shm, but lora"):
        await server.updater.stage(versions.stage_of(whole))
    never_sent = versions.manifest_of(good, 77, adapter=CONFIG)
    with pytest.raises(NotFoundError, match="was not uploaded"):
        await server.updater.stage(versions.stage_of(never_sent, "lora"))
    oracle = merged(server, good)
    assert largest_gap(oracle, image, await server.sample(image)) < TOLERANCE
