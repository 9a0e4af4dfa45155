"""Weight updates of real vLLM in this process: its caches, its failures, its adapters."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient

from services.errors import EngineError
from services.schemas.rollouts import RolloutResponse
from services.schemas.weights import AdapterConfig, Transport, Version
from services.settings import Settings
from tests.e2e import versions
from tests.e2e.conftest import needs_gpus
from tests.e2e.engine_server import EngineServer, engine_server, settings_of
from tests.e2e.oracle import TOLERANCE, Oracle, largest_gap, picture
from tests.updaters import Content
from weight_sync.transports.files import FileSender
from weight_sync.transports.lora import write_config
from weight_sync.transports.sender import make_sender
from weight_sync.transports.shm import shm_file

pytestmark = pytest.mark.asyncio(loop_scope="module")
ADAPTER = AdapterConfig(rank=4, alpha=8.0)
FAR = 20 * TOLERANCE


@pytest.fixture(scope="module", params=[1, 2], ids="{} workers".format)
def settings(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    needs_gpus(request.param)
    folder = tmp_path_factory.mktemp("updates")
    adapters = {"named": str(folder / "named")}
    settings = settings_of(
        tiny_model, folder, adapters=adapters, tensor_parallel_size=request.param
    )
    adapter = versions.random_adapter(Oracle(settings), ADAPTER.rank, seed=5)
    (folder / "named").mkdir()
    versions.adapter_file(folder / "named", adapter)
    write_config(folder / "named", ADAPTER, adapter)
    yield settings
    shutil.rmtree(shm_file(settings.run.name, Version()).parent, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(settings: Settings) -> AsyncIterator[EngineServer]:
    async with engine_server(settings) as server:
        yield server


async def test_the_image_of_a_group_goes_to_the_engine_once(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of groups that come together; an image that was there before does not go again."""
    sent: list[bool] = []
    send = AsyncMPClient.add_request_async

    async def note(client: AsyncMPClient, request: EngineCoreRequest) -> None:
        sent.append(request.mm_features[0].data is not None)
        await send(client, request)

    monkeypatch.setattr(AsyncMPClient, "add_request_async", note)
    images, base = [picture(10), picture(11)], Oracle(server.settings)
    answers = await asyncio.gather(*(server.sample(image, n=4) for image in images))
    answers += [await server.sample(image, n=4) for image in images]
    assert sent == 2 * [True, False, False, False] + 8 * [False]
    for image, answer in zip(2 * images, answers, strict=True):
        assert largest_gap(base, image, answer) < TOLERANCE


async def test_a_partial_version_leaves_frozen_parts_as_they_were(server: EngineServer) -> None:
    image, base = picture(0), Oracle(server.settings)
    for part in ("language_model.", "visual.", "merger."):
        other = versions.perturbed(server.settings, part, seed=6)
        await server.update(other, vision_trained=part != "language_model.", part=part)
        answer = await server.sample(image)
        assert largest_gap(other, image, answer) < TOLERANCE
        assert largest_gap(base, image, answer) > FAR
        await server.update(base, vision_trained=True)
        assert largest_gap(base, image, await server.sample(image)) < TOLERANCE
        server.updater._replaced.clear()  # all is as it was at the start


async def test_new_vision_weights_move_the_answers_about_the_same_image(
    server: EngineServer,
) -> None:
    image = picture(1)
    base, other = Oracle(server.settings), versions.perturbed(server.settings, "visual.", seed=1)
    assert largest_gap(base, image, await server.sample(image)) < TOLERANCE
    await server.update(other, vision_trained=True)
    answer = await server.sample(image)
    assert largest_gap(other, image, answer) < TOLERANCE
    assert largest_gap(base, image, answer) > FAR


async def test_a_frozen_vision_tower_does_not_encode_again(server: EngineServer) -> None:
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
    server: EngineServer,
) -> None:
    image = picture(4)
    await server.sample(image)
    other = versions.perturbed(server.settings, "visual.", seed=4)
    await server.update(other, vision_trained=False)
    assert largest_gap(other, image, await server.sample(image)) < TOLERANCE


@pytest.mark.parametrize("where", ["load", "finish"])
async def test_a_load_that_fails_half_way_is_tried_again(server: EngineServer, where: str) -> None:
    """Also where a layer has got one of its tensors: the second attempt brings that one again.

    Of several workers one fails: the first, whose failure must not be taken for the answer to the
    next call, or the last.
    """
    other = versions.perturbed(server.settings, "", seed=6)
    manifest = await server.stage(other, vision_trained=True)
    if where == "load":
        await server.probe("probe_fail_loads", 1)
    else:
        await server.probe("probe_fail_finish")
    await server.updater.commit(versions.commit_of(manifest))
    assert server.updater.state == "ready"
    assert largest_gap(other, picture(5), await server.sample(picture(5))) < TOLERANCE
    for mark in ("one", "two"):
        replies = await server.engine._llm.collective_rpc("sgg_echo", args=(mark,))
        assert set(replies) == {mark}, "no worker answers the call before"


async def test_a_server_that_failed_twice_is_seeded_again_over_http(server: EngineServer) -> None:
    image = picture(6)
    other = versions.perturbed(server.settings, "", seed=7)
    manifest = await server.stage(other, vision_trained=True)
    await server.probe("probe_fail_loads", 2)
    with pytest.raises(EngineError, match="no memory"):
        await server.updater.commit(versions.commit_of(manifest))
    assert server.updater.state == "quarantined"
    waiting = asyncio.create_task(server.sample(image))
    file = shm_file(server.settings.run.name, manifest.version)
    await server.updater.upload(manifest.version, Content(file.read_bytes()))
    file.unlink()
    await server.updater.stage(versions.stage_of(manifest, "http"))
    assert not waiting.done()
    await server.updater.commit(versions.commit_of(manifest))
    answer = await waiting
    assert largest_gap(other, image, answer) < TOLERANCE
    spans = {s.policy_version for c in answer.completions for s in c.policy_versions}
    assert spans == {manifest.policy_version}


@pytest.mark.parametrize("transport", ["shm", "http"])
async def test_a_delta_is_served_as_its_whole_version_is(
    server: EngineServer, transport: Transport
) -> None:
    """Token by token, whichever way the version came."""
    oracle = versions.perturbed(server.settings, "", seed=12)
    changes = {"transport": transport, "encoding": "delta"}
    weights = server.settings.weights.model_copy(update=changes)
    sender = make_sender(server.settings.model_copy(update={"weights": weights}))
    assert isinstance(sender, FileSender)
    whole = versions.prepared(sender, oracle, server.updater.serving.policy_version + 1)
    await server.take(sender, whole)
    versions.perturb(oracle, "layernorm", seed=13, noise=0.3)
    delta = versions.prepared(sender, oracle, whole.version.policy_version + 1, whole)
    assert delta.manifest.delta is not None
    base = await server.sample(picture(12), seed=1)
    await server.take(sender, delta)
    answer = await server.sample(picture(12), seed=1)
    assert largest_gap(oracle, picture(12), answer) < TOLERANCE
    await server.update(oracle, vision_trained=True)
    again = await server.sample(picture(12), seed=1)
    assert numbers(again) == numbers(answer) != numbers(base)
    sender.close()


def numbers(answer: RolloutResponse) -> list[tuple[list[int], list[float]]]:
    """Token ids and log-probabilities of each completion."""
    return [(c.token_ids, c.rollout_logprobs) for c in answer.completions]


async def test_a_named_adapter_is_over_the_weights_of_now(server: EngineServer) -> None:
    """VLLM forgets adapters at every update, and reads their folders again."""
    image = picture(7)
    adapter = versions.random_adapter(Oracle(server.settings), ADAPTER.rank, seed=5)
    for seed in (8, 9):
        oracle = versions.perturbed(server.settings, "", seed=seed)
        await server.update(oracle, vision_trained=True)
        assert largest_gap(oracle, image, await server.sample(image)) < TOLERANCE
        versions.merge(oracle, adapter, ADAPTER)
        assert largest_gap(oracle, image, await server.sample(image, "named")) < TOLERANCE


async def test_a_commit_ends_with_the_engine_process(server: EngineServer) -> None:
    """The last test here: this engine never answers again, and vLLM's own call would wait on."""
    manifest = await server.stage(Oracle(server.settings), vision_trained=True)
    (process,) = server.engine._llm.engine_core.resources.engine_manager.processes
    workers = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGSTOP)
    committing = asyncio.create_task(server.updater.commit(versions.commit_of(manifest)))
    await asyncio.sleep(1.0)
    assert server.updater.state == "updating"
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        with pytest.raises(EngineError, match="its engine process is dead"):
            await committing
        with pytest.raises(EngineError, match="vLLM did not answer"):
            await server.engine.check_health()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert server.updater.failure is not None
    assert server.updater.failure.endswith(
        "could not be loaded: vLLM did not pause: its engine process is dead"
    )
