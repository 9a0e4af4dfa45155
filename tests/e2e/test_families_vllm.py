"""Qwen2-VL and Qwen3-VL beside the session's Qwen2.5-VL: adapters, two images, tokens, updates."""

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from scene_data.toy.tiny_model import Family, make_tiny_model
from scene_graph.boxes import RELATIVE_1000
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError, UnauthorizedError
from services.http.clients.rollout import RolloutClient
from services.schemas.weights import Version
from tests.e2e.conftest import RunningServer, running_server, server_here
from tests.e2e.oracle import TOLERANCE, Oracle, data_uri, largest_gap, picture, request
from tests.e2e.versions import commit_of, perturbed, stage_of, write_shm
from tests.live_servers import LiveServer
from tests.tagged_pictures import ORIENTATIONS, encoded, noise, stored, tagged
from weight_sync.transports.shm import shm_file

Server = RunningServer | LiveServer

TOKEN = "the data token"
RANK, ALPHA = 4, 8.0
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def tiny(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family) / "tiny"
    make_tiny_model(folder, family=family)
    return folder


def layers(model: Any) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if "language_model" in name and name.endswith(TARGETS)
    }


def write_adapter(folder: Path, model: Any, *, scale: float) -> Path:
    """An adapter in PEFT's layout; with scale 0 its B is zero, as an untrained one's."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, layer in layers(model).items():
        key = f"base_model.model.{name}"
        shape_a, shape_b = (RANK, layer.in_features), (layer.out_features, RANK)
        tensors[f"{key}.lora_A.weight"] = torch.randn(shape_a, generator=generator)
        tensors[f"{key}.lora_B.weight"] = scale * torch.randn(shape_b, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merge_adapter(model: Any, folder: Path) -> None:
    """W + alpha / rank * B A (arXiv 2106.09685, section 4.1)."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, layer in layers(model).items():
        key = f"base_model.model.{name}"
        product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
        layer.weight.data += ALPHA / RANK * product


def serve_qwen2(
    redis_url: str, folders: pytest.TempPathFactory
) -> AbstractContextManager[LiveServer]:
    """Two images, two adapters, and a data token."""
    model, folder = tiny("qwen2_vl", folders), folders.mktemp("qwen2")
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    adapters = {
        name: str(write_adapter(folder / name, loaded, scale=scale))
        for name, scale in (("fresh", 0.0), ("bent", 0.05))
    }
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    return server_here(
        model,
        redis_url,
        folder,
        rollout={"max_images_per_prompt": 2, "adapters": adapters, "max_lora_rank": RANK},
        security={"data_token_file": str(token)},
    )


@pytest.fixture(scope="module")
def mixture(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A process of its own, and of two workers."""
    folder = tmp_path_factory.mktemp("qwen3-moe")
    pair = {"tensor_parallel_size": min(2, torch.cuda.device_count() or 2)}
    with running_server(
        tiny("qwen3_vl_moe", tmp_path_factory), redis_url, folder, rollout=pair
    ) as server:
        yield server


@pytest.fixture(scope="module")
def families(
    mixture: RunningServer, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    qwen3 = tiny("qwen3_vl", tmp_path_factory), redis_url, tmp_path_factory.mktemp("qwen3")
    with serve_qwen2(redis_url, tmp_path_factory) as second, server_here(*qwen3) as third:
        yield {"qwen2": second, "qwen3": third, "qwen3-moe": mixture}


@pytest.fixture(scope="module")
def qwen2(families: dict[str, Server]) -> Server:
    return families["qwen2"]


def client_of(server: Server) -> RolloutClient:
    return RolloutClient(server.url, token=TOKEN)


async def test_two_images_in_their_order(qwen2: Server) -> None:
    oracle = Oracle(qwen2.settings)
    first, second = picture(1), picture(2, 140)
    async with client_of(qwen2) as client:
        answer = await client.rollouts(request(first, second, n=4))
        with pytest.raises(InvalidInputError, match=r"rollout\.max_images_per_prompt"):
            await client.rollouts(request(first, second, first))
    inputs = oracle.inputs([first, second])
    assert answer.prompt_token_ids == inputs["input_ids"][0].tolist()
    assert largest_gap(oracle, [first, second], answer) < TOLERANCE
    assert largest_gap(oracle, [picture(3), picture(2, 140)], answer) > TOLERANCE
    same_size = picture(4)
    async with client_of(qwen2) as client:
        swapped = await client.rollouts(request(same_size, first, n=4))
    assert largest_gap(oracle, [same_size, first], swapped) < TOLERANCE
    assert largest_gap(oracle, [first, same_size], swapped) > TOLERANCE


async def test_adapters_by_name(qwen2: Server) -> None:
    image, plain = picture(5), Oracle(qwen2.settings)
    merged = Oracle(qwen2.settings)
    merge_adapter(merged.model, qwen2.settings.rollout.adapters["bent"])
    async with client_of(qwen2) as client:
        none = await client.rollouts(request(image, n=4))
        fresh = await client.rollouts(request(image, n=4, adapter="fresh"))
        bent = await client.rollouts(request(image, n=4, adapter="bent"))
        again = await client.rollouts(request(image, n=4))
        with pytest.raises(InvalidInputError, match=r"no adapter 'lost'.*bent, fresh"):
            await client.rollouts(request(image, adapter="lost"))
    for answer in (none, fresh, again):
        assert largest_gap(plain, image, answer) < TOLERANCE
    assert largest_gap(merged, image, bent) < TOLERANCE
    assert largest_gap(plain, image, bent) > 10 * TOLERANCE


async def test_models_and_a_chat_with_the_data_token(qwen2: Server) -> None:
    image = picture(6)
    turn: Any = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_uri(image)}},
            {"type": "text", "text": "Write the scene graph."},
        ],
    }
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    async with openai.AsyncOpenAI(base_url=f"{qwen2.url}/v1", api_key=TOKEN) as chat:
        models = await chat.models.list()
        assert [model.id for model in models.data] == ["tiny", "bent", "fresh"]
        assert "/" not in json.dumps([model.model_dump() for model in models.data])
        texts = {
            name: (await chat.chat.completions.create(model=name, messages=[turn], **options))
            .choices[0]
            .message.content
            for name in ("tiny", "bent", "fresh")
        }
    async with client_of(qwen2) as client:
        bent = await client.rollouts(
            request(image, adapter="bent", suppress_token_ids=[], **options)
        )
    assert texts["tiny"] == texts["fresh"] != texts["bent"] == bent.completions[0].text
    async with openai.AsyncOpenAI(base_url=f"{qwen2.url}/v1", api_key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()
    async with RolloutClient(qwen2.url, token="wrong") as stranger_too:
        with pytest.raises(UnauthorizedError):
            await stranger_too.rollouts(request(image))


@pytest.fixture(params=["qwen2", "qwen3", "qwen3-moe"])
def server(request: pytest.FixtureRequest, families: dict[str, Server]) -> Server:
    return families[request.param]


@pytest.mark.parametrize("size", [(640, 480), (40, 60), (800, 300)])
async def test_images_have_as_many_tokens_as_the_trainer_s(
    server: Server, size: tuple[int, int]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").save(buffer, "PNG")
    async with client_of(server) as client:
        answer = await client.rollouts(request(buffer.getvalue(), max_tokens=2))
    expected = Oracle(server.settings).inputs(buffer.getvalue())["input_ids"][0].tolist()
    assert answer.prompt_token_ids == expected


async def test_every_orientation_is_seen_as_the_trainer_sees_it(server: Server) -> None:
    """Also against the same pixels without a tag, so that both are upright, and not both wrong."""
    oracle, upright = Oracle(server.settings), noise(84, 140)
    plain = encoded(Image.fromarray(upright))
    kinds = ("PNG", "WEBP")
    async with client_of(server) as client:
        for orientation in ORIENTATIONS:
            data = tagged(upright, orientation, kinds[orientation % 2])
            answer = await client.rollouts(request(data, n=2))
            assert answer.prompt_token_ids == oracle.inputs(plain)["input_ids"][0].tolist()
            assert largest_gap(oracle, data, answer) < TOLERANCE
            assert largest_gap(oracle, plain, answer) < TOLERANCE
    as_stored = encoded(Image.fromarray(stored(upright, 4)))
    assert largest_gap(oracle, as_stored, answer) > TOLERANCE


async def test_a_strip_with_too_many_tokens_is_refused(server: Server) -> None:
    strip = encoded(Image.new("RGB", (20_000, 110)))
    async with client_of(server) as client:
        with pytest.raises(InvalidInputError, match="too narrow: 20000x110"):
            await client.rollouts(request(strip))


async def test_a_layer_of_a_mixture_of_experts(mixture: RunningServer) -> None:
    """Experts that come with a version are packed anew; those of other layers stay as they are."""
    server = mixture
    image, base = picture(9), Oracle(server.settings)
    other = perturbed(server.settings, "layers.1.", seed=3, noise=0.1)
    run = server.settings.run.name
    try:
        async with client_of(server) as client:
            for version, oracle in ((1, other), (2, base)):
                manifest = write_shm(run, oracle, version, vision_trained=False, part="layers.1.")
                await client.stage(stage_of(manifest))
                await client.commit(commit_of(manifest))
                answer = await client.rollouts(request(image, n=4))
                assert largest_gap(oracle, image, answer) < TOLERANCE
                before = base if oracle is other else other
                assert largest_gap(before, image, answer) > 10 * TOLERANCE
    finally:
        shutil.rmtree(shm_file(run, Version()).parent, ignore_errors=True)


async def test_updates_of_every_family(server: Server) -> None:
    """Tied output heads, merged layers, Qwen3-VL's deepstack, and layers wrapped for adapters."""
    image, base = picture(7), Oracle(server.settings)
    other = Oracle(server.settings, noise=0.03)
    run = server.settings.run.name
    try:
        async with client_of(server) as client:
            before = await client.rollouts(request(image, n=4))
            for version, oracle in ((3, other), (4, base)):
                manifest = write_shm(run, oracle, version, vision_trained=True)
                await client.stage(stage_of(manifest))
                await client.commit(commit_of(manifest))
                answer = await client.rollouts(request(image, n=4))
                assert largest_gap(oracle, image, answer) < TOLERANCE
    finally:
        shutil.rmtree(shm_file(run, Version()).parent, ignore_errors=True)
    assert largest_gap(base, image, before) < TOLERANCE
    assert largest_gap(other, image, before) > 10 * TOLERANCE


async def test_a_schema_makes_even_a_random_model_write_a_graph(
    families: dict[str, Server],
) -> None:
    options: dict[str, Any] = {"json_schema": "scene_graph", "suppress_token_ids": []}
    async with client_of(families["qwen3"]) as client:
        answer = await client.rollouts(request(picture(8), n=16, max_tokens=600, **options))
    finished = [c.text for c in answer.completions if c.finish_reason == "stop"]
    assert finished
    for text in finished:
        parsed = parse_completion(text, RELATIVE_1000)
        assert parsed.status == "ok"
        assert not parsed.dropped.keys() & {"malformed_object", "malformed_relationship"}


def test_engine_and_workers_end_with_a_killed_server(mixture: RunningServer) -> None:
    """They would hold GPUs, and the server's port. The last test: a server is gone."""
    processes = psutil.Process(mixture.process.pid).children(recursive=True)
    assert processes
    mixture.process.kill()
    mixture.process.wait()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
