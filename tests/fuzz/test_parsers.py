"""Whatever comes in, a parser reads it or refuses it with an error of the project.

`make fuzz` gives each many more inputs than `make test` does.
"""

import base64
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel, ValidationError
from safetensors.numpy import save

from reward_service.scoring import make_scorer
from reward_service.service.request_parsing import read_request
from rollout_service.vllm.json_schema import check_schema
from scene_graph.boxes import BoxSpace
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError, SettingsError, TooLargeError
from services.http.guard import check_json
from services.images import decode_image, image_from_data_uri, image_header
from services.models.kept_tokens import WIDTH, unpack_kept
from services.run_folder.records import parse_record
from services.schemas.chat import ChatRequest
from services.schemas.prompts import PromptGroup
from services.schemas.rollouts import RolloutGroup, RolloutRequest
from services.schemas.scene_graphs import SceneGraphRequest
from services.schemas.versions import parse
from services.schemas.weights import PolicyRecord, ServerRecord, StageRequest
from services.settings import load_settings
from tests.fuzz.damage import damaged_bytes, damaged_json, damaged_tree, trees
from trainer.checkpoints.checkpoint import TrainerState
from trainer.checkpoints.manifest import MANIFEST_FILE, damage
from weight_sync.file_format import LENGTH_BYTES, header_length, parse_header

GOLDEN = Path(__file__).parents[1] / "contract/golden"


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


ANSWER = (
    '<think>two things</think><answer>{"objects": [{"id": "man.1", "bbox": [10, 20, 60, 100]}, '
    '{"id": "horse.2", "bbox": [5, 40, 90, 99]}], "relationships": [{"subject": "man.1", '
    '"predicate": "riding", "object": "horse.2"}]}</answer>'
)


@given(
    damaged_bytes(ANSWER.encode()),
    st.sampled_from(["relative_1000", "relative_1", "pixels:640x480"]),
)
def test_an_answer_of_a_model_has_a_graph_of_finite_boxes_or_a_status(
    text: bytes, space: str
) -> None:
    parsed = parse_completion(text.decode(errors="surrogateescape"), BoxSpace.parse(space))
    for item in parsed.graph.objects:
        assert all(math.isfinite(number) for number in item.bbox)
    known = {item.id for item in parsed.graph.objects}
    for relation in parsed.graph.relationships:
        assert {relation.subject, relation.object} <= known


def _encoded(kind: str, **options: Any) -> bytes:
    pixels = np.arange(13 * 7 * 3, dtype=np.uint8).reshape(7, 13, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


EXIF = Image.Exif()
EXIF[274] = 6
PICTURES = [
    _encoded("PNG"),
    _encoded("PNG", exif=EXIF),
    _encoded("JPEG", exif=EXIF),
    _encoded("WEBP"),
    _encoded("GIF"),
]


@given(st.sampled_from(PICTURES).flatmap(damaged_bytes))
def test_a_picture_is_decoded_to_the_size_of_its_header_or_refused(data: bytes) -> None:
    try:
        picture = decode_image(data)
    except (InvalidInputError, TooLargeError):
        return
    header = image_header(data)
    assert picture.size == (header.width, header.height)
    assert picture.mode == "RGB"


@given(damaged_bytes(b"data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="))
def test_an_image_uri_is_bytes_or_refused(text: bytes) -> None:
    try:
        image_from_data_uri(text.decode(errors="replace"))
    except (InvalidInputError, TooLargeError):
        return


WEIGHTS = save({"a.weight": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float16)})


@given(damaged_bytes(WEIGHTS))
def test_a_safetensors_header_covers_the_file_without_gaps_or_is_refused(data: bytes) -> None:
    try:
        start = LENGTH_BYTES + header_length(data[:LENGTH_BYTES])
        spans = parse_header(data[LENGTH_BYTES:start], max(len(data) - start, 0))
    except InvalidInputError:
        return
    assert sum(span.end - span.begin for span in spans.values()) == len(data) - start


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "maxItems": 9}},
    "required": ["a"],
    "$defs": {"b": {"type": "string", "pattern": "^[a-z]{1,9}$", "maxLength": 9}},
}


@given(damaged_tree(SCHEMA) | st.dictionaries(st.text(max_size=8), trees, max_size=5))
def test_a_json_schema_is_small_or_refused(schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    try:
        text = check_schema(schema)
    except InvalidInputError:
        return
    json.loads(text)


MESSAGES: list[tuple[type[BaseModel], str]] = [
    (PromptGroup, "prompt_group"),
    (RolloutGroup, "rollout_group"),
    (RolloutRequest, "rollout_request"),
    (StageRequest, "stage_request"),
    (ServerRecord, "server_record"),
    (PolicyRecord, "policy_record"),
    (SceneGraphRequest, "scene_graph_request"),
]
CHAT = {
    "model": "policy",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    "max_tokens": 5,
    "response_format": {"type": "json_object"},
}


@pytest.mark.parametrize(("kind", "name"), MESSAGES)
@given(st.data())
def test_an_entry_of_a_stream_or_a_record_is_read_back_the_same_or_refused(
    kind: type[BaseModel], name: str, data: st.DataObject
) -> None:
    _read_back(kind, data.draw(damaged_json(golden(name))))


KEPT = golden("rollout_group_kept")["completions"][0]["kept_tokens"]


@given(
    damaged_bytes(KEPT.encode()).map(lambda text: text.decode("utf-8", "replace"))
    | damaged_bytes(zlib.decompress(base64.b64decode(KEPT))).map(
        lambda content: base64.b64encode(zlib.compress(content)).decode()
    )
)
def test_kept_tokens_are_some_for_each_token_or_refused(text: str) -> None:
    try:
        found = unpack_kept(text, 3)
    except InvalidInputError:
        return
    assert found.shape == (3, WIDTH)
    assert found.min() >= 0


@given(damaged_json(CHAT))
def test_a_chat_request_is_read_back_the_same_or_refused(body: bytes) -> None:
    _read_back(ChatRequest, body)


def _read_back(kind: type[BaseModel], body: bytes) -> None:
    try:
        check_json(body)
        message = parse(kind, body)
    except (ValidationError, InvalidInputError, TooLargeError):
        return
    assert parse(kind, message.model_dump_json()) == message


@given(damaged_json(golden("reward_request")))
def test_a_reward_request_is_scored_or_refused(body: bytes) -> None:
    try:
        request = read_request(body)
        scorer = make_scorer(request.rubric, request.task)
    except (InvalidInputError, TooLargeError):
        return
    for group in scorer.score(request.groups):
        assert all(0 <= reward.total <= 1000 for reward in group.rewards)


SETTINGS = {
    "run": {"name": "a", "seed": 3},
    "model": {"path": "m", "box_space": "pixels"},
    "data": {"train": "d.parquet"},
    "reward": {"rubric": "balanced", "terms": ["own.py:f"]},
    "trainer": {"num_steps": 5, "group_size": 8, "learning_rate": 1e-6},
    "deploy": {"site_values": {"account": "g"}, "time_limit": "1:00:00"},
}


@given(damaged_bytes(tomli_w.dumps(SETTINGS).encode()))
def test_settings_are_read_or_refused(tmp_path_factory: Any, text: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    file.write_bytes(text)
    try:
        load_settings(file, environment={})
    except SettingsError:
        return


@given(
    st.sampled_from(
        ["trainer.num_steps", "reward.rubric", "model.path", "run", "deploy.site_values"]
    ),
    st.text(max_size=30),
)
def test_settings_of_a_command_line_are_read_or_refused(name: str, text: str) -> None:
    try:
        load_settings([], ["model.path=m", "data.train=d", f"{name}={text}"], environment={})
    except SettingsError:
        return


STATE = TrainerState(step=4).model_dump(mode="json")
MANIFEST = {"files": {"trainer.json": {"num_bytes": 9, "sha256": "0" * 64}}}


@given(damaged_json(MANIFEST))
def test_a_checkpoints_manifest_says_what_is_wrong(tmp_path_factory: Any, text: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / MANIFEST_FILE).write_bytes(text)
    wrong = damage(folder)
    assert wrong is None or isinstance(wrong, str)


@given(damaged_json(STATE))
def test_a_checkpoints_state_is_read_back_the_same_or_refused(text: bytes) -> None:
    _read_back(TrainerState, text)


KEPT = GOLDEN / "earlier/88e81e3/run/rollouts/step-000003.rank0.jsonl"


@given(damaged_json(json.loads(KEPT.read_text())))
def test_a_kept_group_is_read_back_the_same_or_refused(line: bytes) -> None:
    try:
        record = parse_record(line, "line 1")
    except InvalidInputError:
        return
    kept = record.model_dump_json()  # NaN of a policy that has diverged is null there
    assert parse_record(kept.encode(), "line 1").model_dump_json() == kept
