"""Stop strings, seeds and JSON schemas with real vLLM, with one worker and with two."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rollout_service.vllm.json_schema import MAX_SCHEMA_COST
from scene_graph.boxes import RELATIVE_1000
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import answer_grammar
from scene_graph.parsing import parse_completion
from services.errors import EngineError, InvalidInputError
from services.http.clients.rollout import RolloutClient
from services.models.grammar_library import grammar_library
from services.models.kept_tokens import unpack_kept
from services.schemas.common import Sampling
from services.schemas.rollouts import RolloutResponse
from tests.e2e.conftest import RunningServer, needs_gpus, server_here
from tests.e2e.oracle import SUPPRESSED, TOLERANCE, Oracle, picture, request
from tests.live_servers import LiveServer
from trainer.algorithms.divergence import k3
from trainer.algorithms.logprobs import KeptTokens, SamplingDistribution, token_logprobs
from trainer.batches.mask_replay import allowed_tokens
from trainer.policy.model import mask_replay, placeholder_ids

Server = RunningServer | LiveServer


@pytest.fixture(scope="module")
def two_workers(
    tiny_model: Path, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    needs_gpus(2)
    folder, pair = tmp_path_factory.mktemp("two"), {"tensor_parallel_size": 2}
    with server_here(tiny_model, redis_url, folder, rollout=pair) as server:
        yield server


@pytest.fixture(params=["rollout_server", "two_workers"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def tokens(answer: RolloutResponse) -> list[list[int]]:
    return [completion.token_ids for completion in answer.completions]


async def test_text_ends_before_a_stop_string(server: Server) -> None:
    image = picture(50)
    async with RolloutClient(server.url) as client:
        whole = await client.rollouts(request(image, temperature=0, max_tokens=40))
        text = whole.completions[0].text
        stop = text[len(text) // 2 :][:4]
        cut = await client.rollouts(request(image, temperature=0, max_tokens=40, stop=[stop]))
        start = await client.rollouts(
            request(image, temperature=0, max_tokens=40, stop=[text[:1], "never"])
        )
    for answer, expected in ((cut, text[: text.index(stop)]), (start, "")):
        (completion,) = answer.completions
        assert (completion.text, completion.finish_reason) == (expected, "stop")
        assert 0 < len(completion.token_ids) < len(whole.completions[0].token_ids)
        assert len(completion.rollout_logprobs) == len(completion.token_ids)
        assert completion.policy_versions[-1].end == len(completion.token_ids)
        assert completion.token_ids == tokens(whole)[0][: len(completion.token_ids)]


async def test_a_seed_gives_the_same_group_alone_and_in_a_crowd(
    server: Server,
) -> None:
    """Prefills are split in a crowd, which on CPU used to kill the engine when a seed was set."""
    requests = [request(picture(60 + i, 112 + 28 * (i % 5)), n=8, seed=i) for i in range(12)]
    async with RolloutClient(server.url) as client:
        crowd = await asyncio.gather(*(client.rollouts(one) for one in requests))
        alone = [await client.rollouts(one) for one in requests[:4]]
        other = await client.rollouts(request(picture(60), n=8, seed=1))
    for together, single in zip(crowd, alone, strict=False):
        assert tokens(together) == tokens(single)
        assert len({tuple(ids) for ids in tokens(single)}) == 8, "completions of a group differ"
    seen = {tuple(ids) for ids in tokens(alone[0])}
    assert not seen & {tuple(ids) for ids in tokens(other)}, "neighbouring seeds share no stream"


async def test_a_scene_graph_and_nothing_else(server: Server) -> None:
    options: dict[str, Any] = {"max_tokens": 400, "suppress_token_ids": []}
    async with RolloutClient(server.url) as client:
        answer = await client.rollouts(
            request(picture(70), n=8, json_schema="scene_graph", token_ends=True, **options)
        )
    assert answer.renormalised
    finished = [c for c in answer.completions if c.finish_reason == "stop"]
    assert finished, "the toy model comes to an end"
    for completion in finished:
        parsed = parse_completion(completion.text, RELATIVE_1000)
        assert parsed.status == "ok"
        assert not parsed.dropped.keys() & {"malformed_object", "malformed_relationship"}
        assert set(json.loads(completion.text)) == {"objects", "relationships"}
    decode = Oracle(server.settings).processor.tokenizer.decode
    for completion in answer.completions:
        ids = completion.token_ids
        begun = [len(decode(ids[:i], skip_special_tokens=True)) for i in range(1, len(ids) + 1)]
        assert completion.token_ends == begun


async def test_logprobs_under_a_schema_are_renormalised(server: Server) -> None:
    """So the mark is earned: over the allowed tokens alone, every probability is higher."""
    image = picture(71)
    oracle = Oracle(server.settings)
    schema = {"enum": ["left of", "right of", "above"]}
    no_end: dict[str, Any] = {"json_schema": schema, "suppress_token_ids": SUPPRESSED}
    async with RolloutClient(server.url) as client:
        with pytest.raises(InvalidInputError, match="no token to sample"):
            await client.rollouts(request(image, n=8, **no_end))
        answer = await client.rollouts(
            request(image, n=8, json_schema=schema, suppress_token_ids=[])
        )
    for completion in answer.completions:
        assert json.loads(completion.text) in schema["enum"]
        given = torch.tensor(completion.rollout_logprobs)
        full = oracle.of(image, completion)
        gap = (given - full)[:-1]  # the last token is the end, which the oracle suppresses
        assert gap.min() > -TOLERANCE
        assert gap.max() > 0.5


@pytest.mark.parametrize("notation", ["json", "compact"])
async def test_a_replayed_grammar_gives_the_sampler_s_log_probabilities(
    server: Server, notation: NotationName
) -> None:
    """As the trainer scores, with transformers' logits: within 5e-5, the end of the text too."""
    asked: dict[str, Any] = {"grammar": answer_grammar(notation, "sgg")}
    oracle = Oracle(server.settings)
    tokenizer = oracle.processor.tokenizer
    suppressed = placeholder_ids(tokenizer)
    asked |= {"suppress_token_ids": suppressed, "grammar_library": grammar_library()}
    asked |= {"temperature": 0.8, "max_tokens": 400}
    wanted = request(picture(74), n=8, seed=3, **asked)
    async with RolloutClient(server.url) as client:
        answer = await client.rollouts(wanted)
        other = request(picture(74), **asked | {"grammar_library": "xgrammar 0.0.1"})
        with pytest.raises(InvalidInputError, match=r"with xgrammar 0\.0\.1, and this server has"):
            await client.rollouts(other)
    assert "stop" in {completion.finish_reason for completion in answer.completions}
    replay = mask_replay(oracle.model, tokenizer)
    head = torch.eye(replay.vocab_size)
    for completion in answer.completions:
        targets = torch.tensor(completion.token_ids)
        masks = allowed_tokens(replay.masks(wanted.sampling, completion), replay.vocab_size)
        logits = oracle.logprobs(picture(74), completion.token_ids, 0.8, suppressed)
        found = token_logprobs(
            logits.clamp(min=-1e30), head, targets, SamplingDistribution(), chunk=64, allowed=masks
        )
        given = torch.tensor(completion.rollout_logprobs)
        assert (found.logprobs - given).abs().max() < 5e-5
        assert found.removed.max() > 0.1, "without the mask they would differ"


@pytest.mark.parametrize(
    "asked",
    [
        {"top_k": 20},
        {"top_k": 1},
        {"top_k": 7, "top_p": 0.7, "temperature": 1.5},
        {"top_k": 20, "top_p": 0.9, "json_schema": "scene_graph", "max_tokens": 400},
    ],
)
async def test_kept_tokens_give_the_sampler_s_log_probabilities(
    server: Server, asked: dict[str, Any]
) -> None:
    """As the trainer scores, over the tokens that the sampler says; greedy answers beside them."""
    oracle = Oracle(server.settings)
    suppressed = placeholder_ids(oracle.processor.tokenizer)
    options: dict[str, Any] = {"temperature": 0.8, "max_tokens": 60} | asked
    options["suppress_token_ids"] = suppressed
    wanted = request(picture(75), n=8, seed=4, kept_tokens=True, **options)
    greedy = request(picture(75), temperature=0, max_tokens=60)
    async with RolloutClient(server.url) as client:
        alone = await client.rollouts(greedy)
        answer, beside = await asyncio.gather(client.rollouts(wanted), client.rollouts(greedy))
    assert answer.renormalised
    assert tokens(beside) == tokens(alone)
    assert beside.completions[0].kept_tokens is None
    sizes, gaps, removed = set[int](), [], 0.0
    for completion in answer.completions:
        targets = torch.tensor(completion.token_ids)
        ids = torch.from_numpy(unpack_kept(completion.kept_tokens or "", len(targets)))
        assert (ids == targets[:, None]).any(1).all()
        sizes |= {len(set(row)) for row in ids.tolist()}
        logits = oracle.logprobs(
            picture(75), completion.token_ids, options["temperature"], suppressed
        ).clamp(min=-1e30)
        head, whole = torch.eye(logits.shape[1]), SamplingDistribution()
        found = token_logprobs(logits, head, targets, whole, chunk=64, allowed=KeptTokens(ids))
        gaps.append(found.logprobs - torch.tensor(completion.rollout_logprobs))
        removed = max(removed, float(found.removed.max()))
    gap = torch.cat(gaps)
    assert gap.abs().max() < 5e-5
    assert k3(gap).mean() < 1e-6
    assert removed > 0.1, "over the whole vocabulary they would differ"
    assert max(sizes) == asked["top_k"] if "top_p" not in asked else max(sizes) <= asked["top_k"]


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"type": "string", "pattern": "(a{1,10000}){1,10000}"}, "over the limit"),
    ({"type": "string", "pattern": "(x" * 200 + ")" * 200}, "characters"),
    ({"type": "string", "maxLength": MAX_SCHEMA_COST + 1}, "over the limit"),
    ({"enum": [f"value {i}" for i in range(5000)]}, "bytes"),
    ({"type": "array", "uniqueItems": True}, "refuses"),
    ({"type": "string", "pattern": "(unclosed"}, "refuses"),
    ({"type": "no such type"}, "refuses"),
]


@pytest.mark.parametrize(("schema", "message"), HOSTILE)
async def test_schemas_that_cannot_be_used_are_the_caller_s_mistake(
    server: Server, schema: dict[str, Any], message: str
) -> None:
    async with RolloutClient(server.url) as client:
        with pytest.raises(InvalidInputError, match=message):
            await client.rollouts(request(picture(72), n=1, json_schema=schema))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "maxLength": -1},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"enum": []}}},
        {"type": "string", "pattern": "^(x+x+)+y$"},
    ],
)
async def test_odd_schemas_never_harm_the_engine(server: Server, schema: dict[str, Any]) -> None:
    """Refused or sampled by: whatever it is, the next request is served."""
    async with RolloutClient(server.url, timeout_s=60) as client:
        outcome = await asyncio.gather(
            client.rollouts(request(picture(73), n=2, json_schema=schema)), return_exceptions=True
        )
        assert isinstance(outcome[0], InvalidInputError | RolloutResponse), outcome
        assert (await client.rollouts(request(picture(74), n=2))).completions


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, math.inf])
def test_numbers_that_are_not_finite_are_the_policys_fault(logprob: float) -> None:
    """Not the prompt's: another server may sample it."""
    from rollout_service.vllm.sampling import completion, sampling_error

    output: Any = SimpleNamespace(
        token_ids=[0, 0],
        finish_reason="stop",
        text="",
        logprobs=SimpleNamespace(logprobs=[-0.5, logprob]),
        weight_versions=[SimpleNamespace(version="3", start=0, end=2)],
    )
    with pytest.raises(EngineError, match="policy version 3 on this server gives log-prob") as seen:
        completion(output, Sampling(), lambda *_, **__: "!!")
    assert sampling_error(seen.value) is seen.value


@pytest.mark.parametrize(("version", "named"), [("3", "policy version 3 on"), (None, "served now")])
async def test_a_chat_has_no_numbers_that_are_not_finite(version: str | None, named: str) -> None:
    """JSON has none. Of a stream's parts vLLM does not say the version."""
    from rollout_service.vllm.openai import finite_results

    async def results(logprob: float) -> AsyncIterator[Any]:
        spans = version and [SimpleNamespace(version=version, start=0, end=1)]
        steps = [{7: SimpleNamespace(logprob=logprob), 8: SimpleNamespace(logprob=-math.inf)}]
        output = SimpleNamespace(token_ids=[7], logprobs=steps, weight_versions=spans)
        yield SimpleNamespace(outputs=[output])

    assert len([one async for one in finite_results(results(-0.5))]) == 1
    with pytest.raises(EngineError, match=named):
        await anext(finite_results(results(math.nan)))
