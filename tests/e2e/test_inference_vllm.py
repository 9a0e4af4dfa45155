"""Inference through vLLM: greedy and sampled answers, schemas, thinking."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluation.inference.folder import inference
from evaluation.inference.progress import Progress
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.http.clients.rollout import RolloutClient
from services.images import decode_image
from services.schemas.rollouts import InlineImage
from services.schemas.scene_graphs import ImageGraph, SceneGraphRequest
from services.settings import Settings
from tests.e2e.conftest import RunningServer
from tests.tagged_pictures import encoded, tagged

NUM_IMAGES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, num_train=1, num_heldout=NUM_IMAGES)
    return folder / "heldout.parquet"


def infer(
    server: RunningServer,
    data: Path,
    folder: Path,
    *,
    first: int = NUM_IMAGES,
    thinking: bool = False,
    **evaluation: Any,
) -> list[dict[str, Any]]:
    changes = {
        "data": {"train": str(data), "template": "toy", "thinking": thinking},
        "evaluation": {"max_tokens": 96, **evaluation},
    }
    settings = Settings.model_validate(server.settings.model_dump(mode="json") | changes)
    progress = Progress(total=first)
    with inference(folder, open_dataset(data), progress) as work:
        asyncio.run(work.ask(settings, [server.url]))
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def texts(lines: list[dict[str, Any]]) -> list[str]:
    return [line["text"] for line in lines]


def test_greedy_answers_are_graphs_in_pixels_and_go_on_where_they_ended(
    rollout_server: RunningServer, data: Path, tmp_path: Path
) -> None:
    infer(rollout_server, data, tmp_path / "parts", first=5)
    lines = infer(rollout_server, data, tmp_path / "parts")
    assert texts(lines) == texts(infer(rollout_server, data, tmp_path / "whole"))
    assert len(set(texts(lines))) > 1, "the images must matter"
    answered = [line for line in lines if "status" not in line]
    assert len(answered) > NUM_IMAGES / 2
    sides = [side for line in answered for item in line["objects"] for side in item["bbox"]]
    assert 1 < max(sides) <= 112


def test_sampled_answers_follow_seed_and_image(
    rollout_server: RunningServer, data: Path, tmp_path: Path
) -> None:
    once = infer(rollout_server, data, tmp_path / "once", temperature=1.0)
    few = infer(rollout_server, data, tmp_path / "few", temperature=1.0, first=3)
    assert texts(few) == texts(once)[:3]
    assert texts(once) != texts(infer(rollout_server, data, tmp_path / "greedy"))


def test_the_grammar_mends_what_failed_and_the_free_failure_stays_known(
    rollout_server: RunningServer, data: Path, tmp_path: Path
) -> None:
    """Hot enough that many free answers are no graphs."""
    hot: Any = {"temperature": 1.8, "max_tokens": 200}
    free = infer(rollout_server, data, tmp_path / "free", **hot)
    lines = infer(rollout_server, data, tmp_path / "mended", constrain="failures", **hot)
    statuses = [line.get("status") for line in free]
    assert any(statuses)
    assert [line.get("unconstrained_status") for line in lines] == statuses
    for line, before in zip(lines, free, strict=True):
        if "unconstrained_status" in line:
            assert line["unconstrained_text"] == before["text"]
            assert line["text"].startswith('<answer>{"objects":')
            assert line.get("status") is None or line["finish_reason"] == "length"
        else:
            assert line["text"] == before["text"]


def test_thinking_is_asked_for_and_never_under_the_grammar(
    rollout_server: RunningServer, data: Path, tmp_path: Path
) -> None:
    plain = infer(rollout_server, data, tmp_path / "plain", first=4, constrain="all")
    lines = infer(rollout_server, data, tmp_path / "think", first=4, constrain="all", thinking=True)
    assert texts(lines) == texts(plain), "the second prompt is the same"
    free = [line["unconstrained_text"] for line in lines]
    assert free != [line["unconstrained_text"] for line in plain], "the first one is not"


def graphs_of(server: RunningServer, *images: bytes, **options: Any) -> list[ImageGraph]:
    """By `POST /v1/scene-graphs`."""

    async def ask() -> list[ImageGraph]:
        inline = [InlineImage(data=base64.b64encode(image).decode()) for image in images]
        async with RolloutClient(server.url) as client:
            answer = await client.scene_graphs(SceneGraphRequest(images=inline, **options))
        return [ImageGraph.model_validate(graph) for graph in answer.graphs]

    return asyncio.run(ask())


def test_the_endpoint_sees_what_infer_sees(
    rollout_server: RunningServer, data: Path, tmp_path: Path
) -> None:
    """Also in pictures that are stored lying on their sides."""
    pictures = [sample.image_bytes for sample in open_dataset(data)]
    upright = [np.asarray(decode_image(picture)) for picture in pictures]
    turned = [tagged(pixels, 2 + i % 7) for i, pixels in enumerate(upright)]
    lines = infer(rollout_server, data, tmp_path)
    for images in (pictures, turned):
        graphs = graphs_of(rollout_server, *images, max_tokens=96, text=True)
        assert [graph.text for graph in graphs] == texts(lines)
        for graph, line in zip(graphs, lines, strict=True):
            found = graph.model_dump(mode="json")
            assert found["status"] == line.get("status", "ok")
            assert [found[key] for key in ("width", "height", "objects", "relationships")] == [
                line[key] for key in ("width", "height", "objects", "relationships")
            ]
            assert 0 < (graph.confidence or 0) <= 1


def test_a_photo_of_a_phone(rollout_server: RunningServer, data: Path) -> None:
    """12 million pixels, 3000 wide and 4000 high, stored lying on their side."""
    scene = decode_image(open_dataset(data)[0].image_bytes).resize((3000, 4000))
    photo = tagged(np.asarray(scene), 6, "JPEG")
    upright = encoded(decode_image(photo), compress_level=1)
    options: dict[str, Any] = {"max_tokens": 96, "text": True, "draw": "svg"}
    graph, wanted = graphs_of(rollout_server, photo, upright, **options)
    assert (graph.width, graph.height) == (3000, 4000)
    assert (graph.text, graph.status) == (wanted.text, wanted.status)
    svg = ElementTree.fromstring(graph.svg or "")
    assert (svg.get("width"), svg.get("height")) == ("750", "1000")
