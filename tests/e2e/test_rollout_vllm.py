"""The rollout service with real vLLM, held against transformers with the same weights."""

import asyncio
import base64
import io
import shutil
import uuid
from collections.abc import Iterator

import pytest
import torch
from PIL import Image

from scene_data.templates import prompt_messages
from scene_graph.boxes import RELATIVE_1000, smart_resize
from services.errors import ConflictError, InvalidInputError
from services.http.clients.rollout import RolloutClient
from services.images import ImageStore
from services.redis.client import connect
from services.redis.keys import RunKeys, prompt_stream
from services.redis.queue import RedisQueue
from services.redis.registry import Registry
from services.schemas.common import ChatMessage, Sampling, TextPart
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import (
    InlineImage,
    RolloutGroup,
    RolloutRequest,
    RolloutResponse,
)
from services.schemas.weights import (
    PolicyRecord,
    Version,
    manifest_checksum,
)
from tests.e2e.conftest import RunningServer
from tests.e2e.oracle import SUPPRESSED, TOLERANCE, Oracle, messages, picture, request
from tests.e2e.versions import commit_of, stage_of, write_shm
from tests.live_servers import registered
from tests.processes import wait_for
from trainer.policy.model import load_processor
from weight_sync.transports.shm import shm_file

MESSAGES = messages()


@pytest.fixture(scope="module")
def base(rollout_server: RunningServer) -> Oracle:
    return Oracle(rollout_server.settings)


@pytest.fixture(scope="module")
def other(rollout_server: RunningServer) -> Oracle:
    return Oracle(rollout_server.settings, noise=0.03)


@pytest.fixture
def run(rollout_server: RunningServer) -> Iterator[str]:
    run = rollout_server.settings.run.name
    yield run
    shutil.rmtree(shm_file(run, Version()).parent, ignore_errors=True)


def assert_close(oracle: Oracle, image: bytes, answer: RolloutResponse, temperature: float) -> None:
    for completion in answer.completions:
        expected = oracle.of(image, completion, temperature)
        given = torch.tensor(completion.rollout_logprobs)
        torch.testing.assert_close(given, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_of_the_distribution_that_was_sampled(
    rollout_server: RunningServer, base: Oracle, temperature: float
) -> None:
    image = picture(1)
    async with RolloutClient(rollout_server.url) as client:
        answer = await client.rollouts(request(image, n=4, temperature=temperature))
    assert answer.prompt_token_ids == base.inputs(image)["input_ids"][0].tolist()
    texts = {completion.text for completion in answer.completions}
    assert len(texts) == 4, "the completions of a group differ"
    for completion in answer.completions:
        assert len(completion.token_ids) == 24
        assert completion.finish_reason == "length"
        assert not set(completion.token_ids) & set(SUPPRESSED)
    assert_close(base, image, answer, temperature)


async def test_suppressed_ids_are_never_sampled(rollout_server: RunningServer) -> None:
    image = picture(2)
    async with RolloutClient(rollout_server.url) as client:
        free = await client.rollouts(request(image, n=16, max_tokens=48))
        seen = {token for c in free.completions for token in c.token_ids}
        suppressed = [*SUPPRESSED, *sorted(seen)][:64]
        bound = await client.rollouts(
            request(image, n=16, max_tokens=48, temperature=2, suppress_token_ids=suppressed)
        )
    sampled = {token for c in bound.completions for token in c.token_ids}
    assert sampled
    assert not sampled & set(suppressed)


async def test_greedy_is_the_most_likely_token(rollout_server: RunningServer, base: Oracle) -> None:
    image = picture(3)
    async with RolloutClient(rollout_server.url) as client:
        answer = await client.rollouts(request(image, n=1, temperature=0))
    completion = answer.completions[0]
    table = base.logprobs(image, completion.token_ids)
    given = table.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    assert (table.max(-1).values - given).max() < TOLERANCE


async def test_an_update_changes_the_answers_and_the_next_one_changes_them_back(
    rollout_server: RunningServer, base: Oracle, other: Oracle, run: str
) -> None:
    image = picture(4)
    async with RolloutClient(rollout_server.url) as client:
        serving = (await client.policy()).policy_version
        before = await client.rollouts(request(image, n=2, temperature=0))
        sampled = {}
        for version, oracle in ((serving + 1, other), (serving + 2, base)):
            manifest = write_shm(run, oracle, version, vision_trained=True)
            info = await client.stage(stage_of(manifest))
            assert (info.policy_version, info.staged_version) == (version - 1, version)
            info = await client.commit(commit_of(manifest))
            assert (info.policy_version, info.state) == (version, "ready")
            greedy = await client.rollouts(request(image, n=2, temperature=0))
            sampled[version] = [c.token_ids for c in greedy.completions]
            spans = [s for c in greedy.completions for s in c.policy_versions]
            assert {s.policy_version for s in spans} == {version}
            answer = await client.rollouts(request(image, n=4))
            assert_close(oracle, image, answer, 1.0)
    first = [c.token_ids for c in before.completions]
    assert sampled[serving + 1] != first
    assert sampled[serving + 2] == first


async def test_an_update_in_flight_switches_at_the_span(
    rollout_server: RunningServer, base: Oracle, other: Oracle, run: str
) -> None:

    image = picture(5)
    async with RolloutClient(rollout_server.url) as client:
        serving = (await client.policy()).policy_version
        manifests = [
            write_shm(run, other, serving + 1, vision_trained=True),
            write_shm(run, base, serving + 2, vision_trained=True),
        ]
        await client.stage(stage_of(manifests[0]))
        running = asyncio.create_task(client.rollouts(request(image, n=32, max_tokens=400)))
        await asyncio.sleep(0.5)
        await client.commit(commit_of(manifests[0]))
        answer = await running
        await client.stage(stage_of(manifests[1]))
        await client.commit(commit_of(manifests[1]))
    oracles = {serving: base, serving + 1: other}
    assert any(len(c.policy_versions) == 2 for c in answer.completions), "too fast to be caught"
    for completion in answer.completions[:8]:
        spans = completion.policy_versions
        assert [s.start for s in spans] == [0, *(s.end for s in spans[:-1])]
        assert spans[-1].end == len(completion.token_ids) == 400
        for span in spans:
            given = torch.tensor(completion.rollout_logprobs[span.start : span.end])
            expected = oracles[span.policy_version].of(image, completion)[span.start : span.end]
            torch.testing.assert_close(given, expected, atol=TOLERANCE, rtol=0)


async def test_bad_updates_are_refused_and_the_old_version_serves_on(
    rollout_server: RunningServer, other: Oracle, run: str
) -> None:
    image = picture(6)
    async with RolloutClient(rollout_server.url) as client:
        serving = (await client.policy()).policy_version
        before = await client.rollouts(request(image, n=1, temperature=0))
        good = write_shm(run, other, serving + 1, vision_trained=True)
        names = sorted(good.tensors)
        missing = {n: good.tensors[n] for n in names[1:]}
        renamed = missing | {"model.visual.nonsense": good.tensors[names[0]]}
        reshaped = dict(good.tensors)
        shape = [*reshaped[names[0]].shape, 1]
        reshaped[names[0]] = reshaped[names[0]].model_copy(update={"shape": shape})
        for tensors in (missing, renamed, reshaped):
            with pytest.raises(InvalidInputError):
                await client.stage(stage_of(good.model_copy(update={"tensors": tensors})))
        with pytest.raises(ConflictError):
            await client.commit(commit_of(good))
        after = await client.rollouts(request(image, n=1, temperature=0))
    assert after.completions[0].token_ids == before.completions[0].token_ids


@pytest.mark.parametrize(
    ("text", "message"), [("<|image_pad|>", "control token"), ("word " * 5000, "refuses")]
)
async def test_prompts_that_do_not_fit_are_refused(
    rollout_server: RunningServer, text: str, message: str
) -> None:
    chat = [ChatMessage(role="user", content=[TextPart(text=text)])]
    async with RolloutClient(rollout_server.url) as client:
        with pytest.raises(InvalidInputError, match=message):
            await client.rollouts(RolloutRequest(messages=chat, sampling=Sampling(max_tokens=4)))
        answer = await client.rollouts(request(picture(7), n=1))
    assert len(answer.completions) == 1


async def test_an_image_that_is_refused_is_the_data_s_fault(
    rollout_server: RunningServer,
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 2)).save(buffer, "PNG")
    async with RolloutClient(rollout_server.url) as client:
        with pytest.raises(InvalidInputError, match="too narrow: 1000x2"):
            await client.rollouts(request(buffer.getvalue(), n=1))
        with pytest.raises(InvalidInputError, match="not an image"):
            await client.rollouts(request(b"GIF89a?", n=1))


async def test_groups_of_different_sizes_with_seeds_survive_a_full_batch(
    rollout_server: RunningServer,
) -> None:
    """Prefills are split then, which on CPU used to kill the engine when a seed was set."""
    async with RolloutClient(rollout_server.url) as client:
        answers = await asyncio.gather(
            *(
                client.rollouts(request(picture(20 + i, 112 + 28 * i), n=8, seed=i))
                for i in range(12)
            )
        )
    assert all(len(answer.completions) == 8 for answer in answers)


async def test_a_prompt_of_the_queue_is_sampled_by_the_version_it_asks_for(
    rollout_server: RunningServer, base: Oracle, other: Oracle, run: str
) -> None:
    settings = rollout_server.settings
    keys = RunKeys(settings.run.name)
    redis = connect(rollout_server.redis_url)
    queue, registry = RedisQueue(redis, keys), Registry(redis, keys)
    async with RolloutClient(rollout_server.url) as client:
        version = (await client.policy()).policy_version + 1
    image = picture(8)
    prompt = PromptGroup(
        group_id=f"g-{uuid.uuid4().hex[:8]}",
        incarnation=1,
        epoch=0,
        index=0,
        messages=MESSAGES,
        images=[ImageStore(settings.run.files.images).put(image)],
        sampling=Sampling(n=4, max_tokens=16, suppress_token_ids=SUPPRESSED),
        min_policy_version=version,
    )
    await queue.enqueue(prompt_stream(prompt), prompt.work_id, prompt.model_dump_json().encode())
    manifest = write_shm(run, other, version, vision_trained=True)
    record = PolicyRecord(
        policy_version=version,
        incarnation=1,
        checksum=manifest_checksum(manifest),
        transport="shm",
    )
    await registry.publish_policy(record, manifest)
    lease = await queue.claim("rollouts", "test", lease_s=60, block_s=60)
    assert lease is not None
    group = RolloutGroup.model_validate_json(lease.body)
    await asyncio.to_thread(wait_for, "a record", lambda: bool(registered(settings)))
    (server,) = await registry.servers()
    await redis.aclose()
    async with RolloutClient(rollout_server.url) as client:
        runners = {group.model_runner, server.model_runner, (await client.policy()).model_runner}
    assert runners == {settings.rollout.model_runner}
    assert group.work_id == prompt.work_id
    assert {s.policy_version for c in group.completions for s in c.policy_versions} == {version}
    for completion in group.completions:
        given = torch.tensor(completion.rollout_logprobs)
        torch.testing.assert_close(given, other.of(image, completion), atol=TOLERANCE, rtol=0)
    back = write_shm(run, base, version + 1, vision_trained=True)  # the server is others' too
    async with RolloutClient(rollout_server.url) as client:
        await client.stage(stage_of(back))
        await client.commit(commit_of(back))


@pytest.mark.parametrize("size", [(640, 480), (40, 60), (800, 300)])
async def test_images_are_resized_by_the_run_s_limits(
    rollout_server: RunningServer, size: tuple[int, int]
) -> None:
    """Sampler, trainer and boxes must see the same image: the checkpoint's limits are others."""
    model = rollout_server.settings.model
    picture = io.BytesIO()
    Image.new("RGB", size, "white").save(picture, "PNG")
    width, height = smart_resize(*size, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    request = RolloutRequest(
        messages=prompt_messages("toy", RELATIVE_1000),
        images=[InlineImage(data=base64.b64encode(picture.getvalue()).decode())],
        sampling=Sampling(max_tokens=2),
    )
    async with RolloutClient(rollout_server.url) as client:
        answer = await client.rollouts(request)
    image_pad = load_processor(rollout_server.settings).tokenizer.convert_tokens_to_ids(
        "<|image_pad|>"
    )
    assert answer.prompt_token_ids.count(image_pad) == (width // 28) * (height // 28)
