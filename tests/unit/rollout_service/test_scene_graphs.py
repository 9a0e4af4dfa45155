"""A picture's question and its graph: `sgg-rl infer` asks and reads in the same way."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evaluation.inference.answers import answered_line
from evaluation.inference.prompts import rollout_request
from rollout_service.scene_graphs import PictureQuestion, confidence
from scene_data.dataset import Sample
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError, SggError, TooLargeError
from services.schemas.rollouts import Completion, VersionSpan
from services.schemas.scene_graphs import ImageGraph, SceneGraphOptions
from services.settings import Settings
from tests.tagged_pictures import noise, png_header, tagged

ROOT = Path(__file__).parents[3]
PHOTO = tagged(noise(900, 600), 6, "JPEG")
"""Upright 600 wide and 900 high; stored lying on its side, as a phone does"""
MAN = {"id": "Man.1", "bbox": [98, 84, 196, 420]}
HAT = {"id": "hat.2", "bbox": [98, 84, 90, 80]}
WEARS = {"subject": "man.1", "predicate": "wears", "object": "hat.2"}


def settings(**data: Any) -> Settings:
    """A model that writes pixels of its own input."""
    return Settings.model_validate(
        {
            "model": {"path": str(ROOT / "assets/toy-start"), "max_pixels": 392 * 588},
            "data": {"train": "unused", "template": "open", **data},
            "evaluation": {"max_tokens": 300, "top_k": 50},
        }
    )


def sample() -> Sample:
    nothing = SceneGraph(objects=(), relationships=())
    return Sample(image_id="7", image_bytes=PHOTO, width=600, height=900, graph=nothing)


def completion(text: str) -> Completion:
    return Completion(
        text=text,
        token_ids=[5, 6, 7],
        rollout_logprobs=[math.log(0.5), math.log(0.25), 0.0],
        finish_reason="stop",
        policy_versions=[
            VersionSpan(policy_version=3, start=0, end=2),
            VersionSpan(policy_version=4, start=2, end=3),
        ],
    )


def read(text: str, run: Settings) -> ImageGraph:
    question = PictureQuestion.about(run, PHOTO)
    answer = question.read(completion(text))
    return question.image_graph(answer, unconstrained_status=None, text=True, svg=None)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        {},
        {"template": "toy", "thinking": True},
        {"template": "closed", "vocabulary": "psg", "task": "det"},
        {"task": "cls"},
    ],
)
def test_a_picture_is_asked_as_infer_asks(data: dict[str, Any], constrained: bool) -> None:
    run = settings(**data)
    wanted = rollout_request(run, sample(), constrained=constrained)
    found = PictureQuestion.about(run, PHOTO).request(SceneGraphOptions(), constrained=constrained)
    assert list(found.messages) == wanted.messages
    assert found.sampling == wanted.sampling
    assert (found.images, found.adapter) == ([PHOTO], None)


def test_a_request_may_sample_otherwise() -> None:
    question = PictureQuestion.about(settings(), PHOTO)
    options = SceneGraphOptions(temperature=0.7, max_tokens=9, seed=5, adapter="a")
    found = question.request(options, constrained=False)
    assert (found.sampling.temperature, found.sampling.max_tokens) == (0.7, 9)
    assert (found.sampling.seed, found.sampling.top_k, found.adapter) == (5, 50, "a")
    same = question.request(options, constrained=False)
    assert found.request_id != same.request_id
    assert dataclasses.replace(found, request_id="") == dataclasses.replace(same, request_id="")


@pytest.mark.parametrize("task", ["sgg", "det", "cls"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"objects": [MAN, HAT], "relationships": [WEARS]}),
        "<think>a</think><answer>```json\n"
        + json.dumps({"objects": [MAN], "relationships": []})
        + "```</answer>",
        '{"objects": [{"id": "man.1", "bbox": [1, 2,',
        "a man",
        '{"objects": 3}',
        "[" * 100,
    ],
)
def test_an_answer_is_read_as_infer_reads(text: str, task: str) -> None:
    run = settings(task=task)
    line = msgspec.to_builtins(answered_line(run, sample(), completion(text)))
    found = read(text, run).model_dump(exclude_none=True)
    assert {"status": "ok", "truncated": False} | line == {
        "image_id": "7",
        **{key: value for key, value in found.items() if key in {*line, "status", "truncated"}},
    }


def test_boxes_are_pixels_of_the_upright_picture() -> None:
    """The model writes pixels of what it sees, 392 wide and 588 high."""
    graph = read(json.dumps({"objects": [MAN], "relationships": []}), settings())
    assert (graph.width, graph.height) == (600, 900)
    assert graph.objects[0].id == "man.1"
    assert graph.objects[0].bbox == pytest.approx((150, 128.5714, 300, 642.857), rel=1e-4)


def test_what_is_wrong_in_an_answer_is_said_in_the_words_of_scoring() -> None:
    run = settings()
    mended = read(json.dumps({"objects": [MAN, HAT], "relationships": [WEARS]}), run)
    assert (mended.status, [item.id for item in mended.objects]) == ("ok", ["man.1"])
    assert mended.dropped == {"inverted_box": 1, "dangling_relationship": 1}
    assert mended.fault == "dangling_relationship: an end is no object of the graph"
    cut = read('{"objects": [', run)
    assert (cut.status, cut.truncated) == ("invalid_json", True)
    assert cut.fault == "the answer stops inside its JSON"
    assert read(json.dumps({"objects": [MAN], "relationships": []}), run).fault is None


def test_confidence_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    assert read("x", settings()).confidence == pytest.approx(0.5)
    assert confidence([]) is None
    assert confidence([1e-5]) == 1.0, "the sampler's rounding"
    assert read("x", settings()).policy_versions == (3, 4)


@pytest.mark.parametrize(
    "text",
    [
        r'{"objects": [{"id": "\ud800.1", "bbox": [1, 2, 3, 4]}], "relationships": []}',
        r'{"objects": [{"\ud800": 1}], "relationships": []}',
        r'{"objects": [{"\u001b[2J": 1}], "relationships": []}',
    ],
)
def test_no_text_of_a_model_breaks_the_message_or_steers_a_terminal(text: str) -> None:
    run = settings()
    graph = read(text, run)
    assert "\x1b" not in (graph.fault or "")
    assert graph.status == "ok"
    written = ImageGraph.model_validate_json(graph.model_dump_json())
    assert written == graph
    msgspec.json.encode(answered_line(run, sample(), completion(text)))


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (b"text", InvalidInputError, "not an image"),
        (png_header(10_000, 8_000), TooLargeError, "10000x8000, over 64,000,000 pixels"),
        (png_header(5_000, 20), InvalidInputError, "too narrow"),
    ],
)
def test_bad_pictures(image: bytes, error: type[SggError], words: str) -> None:
    with pytest.raises(error, match=words):
        PictureQuestion.about(settings(), image)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [("no-such-model", {}, "no-such-model"), ("", {"template": "/none.txt"}, "no such template")],
)
def test_settings_that_ask_nothing_are_the_servers_fault(
    model: str, data: dict[str, Any], words: str
) -> None:
    run = settings(**data)
    if model:
        run = run.changed(model={"path": f"/{model}"})
    with pytest.raises(SggError, match=words) as raised:
        PictureQuestion.about(run, PHOTO).request(SceneGraphOptions(), constrained=False)
    assert (raised.value.status, raised.value.retryable) == (500, False)
