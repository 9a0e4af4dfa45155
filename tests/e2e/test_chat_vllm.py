"""OpenAI's own client against a rollout server."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from scene_graph.boxes import RELATIVE_1000
from scene_graph.notations.json_schema import scene_graph_schema
from scene_graph.parsing import parse_completion
from services.http.clients.rollout import RolloutClient
from tests.e2e.conftest import RunningServer
from tests.e2e.oracle import data_uri, picture, request

MODEL = "toy-start"


@pytest.fixture
async def client(rollout_server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{rollout_server.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def turn(*images: bytes, text: str = "Write the scene graph.") -> Any:
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


async def test_a_chat_with_an_image_is_answered_as_a_rollout_is(
    client: openai.AsyncOpenAI, rollout_server: RunningServer
) -> None:
    image = picture(90)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    answer = await client.chat.completions.create(model=MODEL, messages=[turn(image)], **options)
    async with RolloutClient(rollout_server.url) as rollouts:
        same = await rollouts.rollouts(request(image, suppress_token_ids=[], **options))
        other = await rollouts.rollouts(request(picture(91), suppress_token_ids=[], **options))
    (choice,) = answer.choices
    assert choice.message.content == same.completions[0].text != other.completions[0].text
    assert choice.finish_reason == same.completions[0].finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(same.prompt_token_ids)
    assert answer.model == MODEL


async def test_a_streamed_chat_says_the_same(client: openai.AsyncOpenAI) -> None:
    question: dict[str, Any] = {"model": MODEL, "messages": [turn(picture(92))], "temperature": 0}
    whole = await client.chat.completions.create(**question, max_tokens=24)
    stream = await client.chat.completions.create(
        **question, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert chunks[-1].usage == whole.usage


async def test_json_of_a_schema(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=[turn(picture(93))],
        n=4,
        max_tokens=400,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "graph", "schema": scene_graph_schema(), "strict": True},
        },
    )
    texts = [c.message.content or "" for c in answer.choices if c.finish_reason == "stop"]
    assert texts
    assert all(parse_completion(text, RELATIVE_1000).status == "ok" for text in texts)


async def test_the_policy_is_the_one_model(
    client: openai.AsyncOpenAI, rollout_server: RunningServer
) -> None:
    models = await client.models.list()
    assert [model.id for model in models.data] == [MODEL]
    assert str(rollout_server.model.parent) not in models.model_dump_json()
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt-4o", messages=[turn()])


def bomb() -> bytes:
    """A small file of many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def part(**content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [content]}]


def image_at(url: str) -> list[dict[str, Any]]:
    return part(type="image_url", image_url={"url": url})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": image_at("http://127.0.0.1:1/a.png")}, "never fetched"),
    ({"messages": image_at("https://example.com/a.png")}, "never fetched"),
    ({"messages": image_at("file:///etc/passwd")}, "never fetched"),
    ({"messages": image_at("data:image/png;base64,!")}, "base64"),
    ({"messages": image_at("data:text/html;base64,AAAA")}, "data:image"),
    ({"messages": image_at(data_uri(b"GIF89a?"))}, "not an image"),
    ({"messages": [turn(picture(1), picture(2))]}, "max_images_per_prompt"),
    ({"messages": part(type="video_url", video_url={"url": "x"})}, "video_url"),
    ({"messages": part(type="input_audio", input_audio={"data": "", "format": "wav"})}, "audio"),
    ({"messages": part(type="image_pil", image_pil="x")}, "image_pil"),
    ({"messages": part(type="image_embeds", image_embeds="AAAA")}, "image_embeds"),
    ({"messages": [turn(text="<|image_pad|>")]}, "control token"),
    ({"messages": [turn(text="word ")] * 33}, "messages"),
    ({"messages": [turn(text="word " * 5000)]}, "length|longer|maximum"),
    ({"messages": []}, "messages"),
    ({"n": 257}, "n:"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"logit_bias": {"100000": 1}}, "vocab"),
    ({"response_format": {"type": "json_schema"}}, "no json_schema"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"pattern": "(a{1,9999}){1,9999}"}},
            }
        },
        "over the limit",
    ),
    ({"response_format": {"type": "structural_tag", "format": {}}}, "response_format"),
]
EXTRAS: dict[str, Any] = {
    "mm_processor_kwargs": {"max_pixels": 10**9},
    "media_io_kwargs": {},
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {},
    "structured_outputs": {"regex": "a*"},
    "kv_transfer_params": {},
    "vllm_xargs": {},
    "prompt_logprobs": 5,
    "priority": 1,
    "use_beam_search": True,
    "tools": [],
    "documents": [],
    "truncate_prompt_tokens": 1,
    "cache_salt": "x",
}


async def ask(url: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [turn()], "max_tokens": 4} | fields
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        return await http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(("fields", "message"), REFUSED)
async def test_what_is_not_served_is_the_caller_s_mistake(
    rollout_server: RunningServer, fields: dict[str, Any], message: str
) -> None:
    answer = await ask(rollout_server.url, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"]), error


async def test_extras_of_vllm_are_unknown_fields(rollout_server: RunningServer) -> None:
    for name, value in EXTRAS.items():
        answer = await ask(rollout_server.url, **{name: value})
        assert answer.status_code == 400, name
        assert name in answer.json()["error"]["message"]


async def test_images_of_too_many_pixels_and_deep_bodies(rollout_server: RunningServer) -> None:
    answer = await ask(rollout_server.url, messages=image_at(data_uri(bomb())))
    assert (answer.status_code, "pixels" in answer.json()["error"]["message"]) == (413, True)
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    answer = await ask(rollout_server.url, messages=deep)
    assert "nested" in answer.json()["error"]["message"]
    assert (await ask(rollout_server.url)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_request(
    rollout_server: RunningServer, stream: bool
) -> None:
    """Were it sampled to its end, there would be as many tokens as it asked for."""
    endless = {"max_tokens": 900, "n": 32, "logit_bias": {"2": -100}, "stream": stream}
    async with httpx.AsyncClient(base_url=rollout_server.url, trust_env=False) as http:
        before = counts((await http.get("/metrics")).text)["vllm:generation_tokens_total"]
        leaving = asyncio.create_task(ask(rollout_server.url, **endless))
        while await num_running(http) < 32:
            assert not leaving.done()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        while await num_running(http) >= 32:
            await ask(rollout_server.url)  # vLLM counts anew with its next step
        after = counts((await http.get("/metrics")).text)["vllm:generation_tokens_total"]
    assert leaving.cancelled()
    assert after - before < 32 * 900


async def num_running(http: httpx.AsyncClient) -> float:
    rows = (await http.get("/metrics")).text.splitlines()
    (row,) = (row for row in rows if row.startswith("vllm:num_requests_running{"))
    return float(row.rpartition(" ")[2])


HIDDEN = [
    ("POST", path)
    for path in (
        *("/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages", "/tokenize"),
        *("/detokenize", "/pause", "/resume", "/sleep", "/wake_up", "/collective_rpc"),
        *("/update_weights", "/init_weight_transfer_engine", "/start_weight_update"),
        *("/finish_weight_update", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        *("/reset_prefix_cache", "/reset_mm_cache", "/scale_elastic_ep", "/abort_requests"),
        *("/v1/chat/completions/render", "/v1/chat/completions/batch", "/inference/v1/generate"),
        *("/start_profile", "/invocations"),
    )
] + [("GET", path) for path in ("/version", "/server_info", "/is_sleeping", "/load", "/ping")]


async def test_vllm_s_other_routes_are_not_there(rollout_server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=rollout_server.url, trust_env=False) as http:
        for method, path in HIDDEN:
            answer = await http.request(method, path, json={})
            assert answer.status_code in (404, 405), path


async def test_metrics_are_vllm_s_too_and_name_no_folder(rollout_server: RunningServer) -> None:
    await ask(rollout_server.url)
    async with httpx.AsyncClient(base_url=rollout_server.url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
    assert f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}}' in text
    assert "rollout_event_loop_lag_seconds_bucket" in text
    assert str(rollout_server.model.parent) not in text
    assert "python_info" not in text, "of the default registry only vLLM's own"


async def test_a_group_prepares_its_image_and_its_prompt_once(
    rollout_server: RunningServer,
) -> None:
    async with httpx.AsyncClient(base_url=rollout_server.url, trust_env=False) as http:
        text = (await http.get("/metrics")).text
        before, block = counts(text), int(re.findall(r'block_size="(\d+)"', text)[0])
        async with RolloutClient(rollout_server.url) as client:
            answer = await client.rollouts(request(picture(95, 196), n=8))
        after = counts((await http.get("/metrics")).text)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    length = len(answer.prompt_token_ids)
    assert length > 64
    assert grown["vllm:mm_cache_queries_total"] == 1
    assert grown["vllm:mm_cache_hits_total"] == 0
    shared = (length - 1) // block * block  # whole blocks, but the last token is always computed
    assert grown["vllm:prefix_cache_queries_total"] == 8 * length
    assert grown["vllm:prefix_cache_hits_total"] == 7 * shared


def counts(text: str) -> dict[str, float]:
    rows = [row for row in text.splitlines() if row.startswith("vllm:") and "_total{" in row]
    return {row.partition("{")[0]: float(row.rpartition(" ")[2]) for row in rows}


def test_answers_are_json(rollout_server: RunningServer) -> None:
    """A stream that fails before its first event has a status, not a half-written 200."""
    answer = httpx.post(
        f"{rollout_server.url}/v1/chat/completions",
        json={"model": MODEL, "messages": [turn(text="word " * 5000)], "stream": True},
        trust_env=False,
    )
    assert answer.status_code == 400
    assert json.loads(answer.text)["error"]["param"] is None
