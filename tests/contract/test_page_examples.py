"""Every body and answer on a service's page has an example, and the example is such a message."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from PIL import Image

from docs.hooks.rest import service_apps
from rollout_service.http import examples
from services.images import image_from_data_uri
from services.schemas.chat import ChatRequest
from services.schemas.rollouts import RolloutRequest, RolloutResponse
from services.schemas.scene_graphs import SceneGraphRequest, SceneGraphResponse
from services.schemas.weights import (
    CommitRequest,
    PassOnRequest,
    PolicyInfo,
    ServerProof,
    StageRequest,
)

APPS = service_apps()
DOCUMENTS: dict[str, dict[str, Any]] = {name: app.openapi() for name, app in APPS.items()}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, by_method in document["paths"].items():
        for method, operation in by_method.items():
            yield f"{method} {path}", operation


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "body", media, content
    for status, answer in operation["responses"].items():
        for media, content in answer.get("content", {}).items():
            yield status, media, content


@pytest.mark.parametrize("service", DOCUMENTS)
def test_every_body_and_answer_has_an_example_that_fits_its_schema(service: str) -> None:
    document = DOCUMENTS[service]
    missing, checked = [], 0
    for name, operation in operations(document):
        for where, media, content in contents(operation):
            if "example" not in content:
                missing.append(f"{name} {where} {media}")
                continue
            schema = content.get("schema", {}) | {"components": document["components"]}
            Draft202012Validator(schema).validate(content["example"])
            checked += 1
    # A file of weights is bytes.
    assert set(missing) <= {
        "put /v1/weights/files/{incarnation}/{policy_version} body application/octet-stream"
    }
    assert checked > 15


@pytest.mark.parametrize("service", DOCUMENTS)
def test_every_route_has_a_title_and_a_group_with_a_sentence(service: str) -> None:
    document = DOCUMENTS[service]
    assert document["info"]["description"].endswith(".")
    groups = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert all(text.endswith(".") for text in groups.values())
    used = set()
    for name, operation in operations(document):
        assert len(operation["summary"].split()) >= 4, name
        assert len(operation["tags"]) == 1, name
        used |= set(operation["tags"])
        said = [answer["description"] for answer in operation["responses"].values()]
        assert "Successful Response" not in said, name
    assert used == groups.keys()


def test_the_examples_are_messages() -> None:
    for message, example in (
        (RolloutRequest, examples.ROLLOUTS),
        (RolloutResponse, examples.ROLLOUTS_ANSWER),
        (SceneGraphRequest, examples.SCENE_GRAPHS),
        (SceneGraphResponse, examples.SCENE_GRAPHS_ANSWER),
        (ChatRequest, examples.CHAT),
        (StageRequest, examples.STAGE),
        (CommitRequest, examples.COMMIT),
        (PassOnRequest, examples.PASS_ON),
        (PolicyInfo, examples.POLICY),
        (PolicyInfo, examples.COMMITTED),
        (ServerProof, examples.PROOF),
    ):
        message.model_validate_json(json.dumps(example))
    for line in examples.CHAT_EVENTS.split("\n\n")[:-2]:
        json.loads(line.removeprefix("data: "))


def test_the_example_of_a_graph_is_that_of_its_picture() -> None:
    graph = examples.SCENE_GRAPHS_ANSWER["graphs"][0]
    image = Image.open(io.BytesIO(base64.b64decode(examples.PICTURE.partition(",")[2])))
    assert image.size == (graph["width"], graph["height"])
    assert image_from_data_uri(examples.PICTURE)
    written = json.loads(graph["text"].removeprefix("<answer>").removesuffix("</answer>"))
    box = written["objects"][0]["bbox"]
    scale = (graph["width"], graph["height"]) * 2
    assert graph["objects"][0]["bbox"] == [
        pytest.approx(x * side / 1000) for x, side in zip(box, scale, strict=True)
    ]
