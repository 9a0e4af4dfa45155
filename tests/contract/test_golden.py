"""Every message that crosses a wire, against a JSON file that may only change on purpose."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from reward_service.scoring import make_scorer
from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task as ParsingTask
from scene_graph.notations.answer import NotationName
from scene_graph.notations.answer import Status as ParsingStatus
from scene_graph.parsing import parse_completion
from services.models.kept_tokens import unpack_kept
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Notation, RewardRequest, RewardResponse
from services.schemas.rewards import Status as WireStatus
from services.schemas.rewards import Task as WireTask
from services.schemas.rollouts import RolloutGroup, RolloutRequest, RolloutResponse
from services.schemas.scene_graphs import ImageGraph, SceneGraphRequest, SceneGraphResponse
from services.schemas.versions import Versioned, parse
from services.schemas.weights import (
    CommitRequest,
    PassOnRequest,
    PolicyInfo,
    PolicyRecord,
    ServerRecord,
    StageRequest,
    manifest_checksum,
)

FOLDER = Path(__file__).parent / "golden"
MESSAGES: dict[str, type[BaseModel]] = {
    "prompt_group": PromptGroup,
    "rollout_group": RolloutGroup,
    "prompt_group_kept": PromptGroup,
    "rollout_group_kept": RolloutGroup,
    "rollout_request": RolloutRequest,
    "rollout_response": RolloutResponse,
    "scene_graph_request": SceneGraphRequest,
    "scene_graph_response": SceneGraphResponse,
    "reward_request": RewardRequest,
    "reward_response": RewardResponse,
    "reward_request_credit": RewardRequest,
    "reward_response_credit": RewardResponse,
    "stage_request": StageRequest,
    "stage_request_delta": StageRequest,
    "commit_request": CommitRequest,
    "pass_on_request": PassOnRequest,
    "policy_info": PolicyInfo,
    "policy_record": PolicyRecord,
    "server_record": ServerRecord,
}
EARLIER = "earlier/88e81e3"
"""The messages of the release before messages had a version, as it had them."""
NEWER = {
    "stage_request_delta",
    "pass_on_request",
    "reward_request_credit",
    "reward_response_credit",
    "prompt_group_kept",
    "rollout_group_kept",
}
"""What that release did not have"""
VERSIONED = sorted(name for name, kind in MESSAGES.items() if issubclass(kind, Versioned))


def golden(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_every_golden_file_belongs_to_a_message() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_reads_and_writes_back_the_same(name: str) -> None:
    message = MESSAGES[name].model_validate(golden(name))
    assert json.loads(message.model_dump_json()) == golden(name)


@pytest.mark.parametrize("name", MESSAGES)
def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        MESSAGES[name].model_validate(golden(name) | {"surprise": 1})


def test_all_but_the_public_interface_has_a_version() -> None:
    assert set(MESSAGES) - set(VERSIONED) == {"scene_graph_request", "scene_graph_response"}


@pytest.mark.parametrize("name", sorted(set(VERSIONED) - NEWER))
def test_messages_of_the_release_before_versions_are_read(name: str) -> None:
    message = parse(MESSAGES[name], json.dumps(golden(f"{EARLIER}/{name}")))
    known = {"version", "gpu", "manifest", "checksum"}  # what has another name or value now
    again = json.loads(message.model_dump_json())
    for key, value in golden(f"{EARLIER}/{name}").items():
        if key not in known:
            assert again[key] == _with_later_fields(value, again[key])


def _with_later_fields(earlier: Any, now: Any) -> Any:
    """An earlier value, and in it the fields that later releases added."""
    if isinstance(earlier, dict):
        return now | {key: _with_later_fields(value, now[key]) for key, value in earlier.items()}
    if isinstance(earlier, list):
        return [_with_later_fields(a, b) for a, b in zip(earlier, now, strict=True)]
    return earlier


@pytest.mark.parametrize("name", VERSIONED)
def test_what_only_a_later_release_knows_is_passed_over(name: str) -> None:
    """Also inside of messages; without the later version it stays a mistake."""
    tree = golden(name)
    later = _everywhere(tree) | {"schema_version": "1.9"}
    read = parse(MESSAGES[name], json.dumps(later))
    assert json.loads(read.model_dump_json()) == tree | {"schema_version": "1.9"}
    with pytest.raises(ValidationError, match="of_a_later_release"):
        parse(MESSAGES[name], json.dumps(later | {"schema_version": "1.0"}))


def _everywhere(tree: dict[str, Any]) -> dict[str, Any]:
    """A message with one more field, and one more in each message of its lists."""
    grown = {
        key: [_everywhere(item) if isinstance(item, dict) else item for item in value]
        if isinstance(value, list)
        else value
        for key, value in tree.items()
    }
    return {**grown, "of_a_later_release": {"a": 1}}


@pytest.mark.parametrize("name", VERSIONED)
def test_what_would_be_misread_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(MESSAGES[name], json.dumps(golden(name) | {"schema_version": "2.0", "other": 1}))
    assert re.search(r"2\.0.*reads 1\.x.*install that release", caught.value.errors()[0]["msg"])


def test_a_server_from_before_it_could_have_several_gpus_is_read() -> None:
    old = golden(f"{EARLIER}/server_record")
    assert ServerRecord.model_validate_json(json.dumps(old)).gpus == [old["gpu"]]
    assert ServerRecord.model_validate_json(json.dumps(old | {"gpu": None})).gpus == []


@pytest.mark.parametrize("asking", ["", "_credit"])
def test_the_reward_service_answers_the_golden_request_with_the_golden_response(
    asking: str,
) -> None:
    request = RewardRequest.model_validate(golden(f"reward_request{asking}"))
    scorer = make_scorer(request.rubric, request.task)
    response = RewardResponse.model_validate(golden(f"reward_response{asking}"))
    assert (response.rubric, response.rubric_version) == ("balanced", scorer.rubric_version)
    scored = scorer.score(request.groups, credit=request.credit)
    for group, expected in zip(scored, response.groups, strict=True):
        for got, want in zip(group.rewards, expected.rewards, strict=True):
            assert got.total == pytest.approx(want.total)
            assert got.breakdown == pytest.approx(want.breakdown)
            assert (got.credit is None) == (want.credit is None)
            if got.credit and want.credit:
                assert got.credit.spans == want.credit.spans
                assert got.credit.increments == pytest.approx(want.credit.increments)
            numbers = {"total": 0.0, "breakdown": {}, "credit": None}
            assert got.model_copy(update=numbers) == want.model_copy(update=numbers)


def test_the_golden_answers_say_what_they_were_drawn_from() -> None:
    group = RolloutGroup.model_validate(golden("rollout_group_kept"))
    found = [
        [set(row) for row in unpack_kept(one.kept_tokens or "", len(one.token_ids)).tolist()]
        for one in group.completions
    ]
    assert found == [[{11, 151_643}, {12}, {700, 13, 70_000}], [{21}, {4, 3}]]


def test_the_golden_graph_is_what_its_text_says() -> None:
    graph = SceneGraphResponse.model_validate(golden("scene_graph_response")).graphs[0]
    assert isinstance(graph, ImageGraph)
    parsed = parse_completion(graph.text or "", RELATIVE_1000)
    found = parsed.graph.scaled(graph.width, graph.height)
    assert [item.id for item in graph.objects] == [item.id for item in found.objects]
    for item, wanted in zip(graph.objects, found.objects, strict=True):
        assert item.bbox == pytest.approx(wanted.bbox)
    assert graph.dropped == parsed.dropped


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("stage_request", "blake3"),
        ("stage_request_delta", "blake3"),
        (f"{EARLIER}/stage_request", "sha256"),
    ],
)
def test_the_stage_request_states_its_manifests_checksum(name: str, algorithm: str) -> None:
    """The earlier one is as a trainer wrote it that knew sha256 alone."""
    request = StageRequest.model_validate(golden(name))
    assert request.checksum == manifest_checksum(request.manifest)
    assert request.manifest.algorithm == algorithm
    assert all(entry.digest for entry in request.manifest.tensors.values())


def test_digests_that_a_later_release_makes_are_refused_with_what_to_do() -> None:
    tree = golden("stage_request")
    tree["manifest"]["algorithm"] = "blake4"
    with pytest.raises(ValidationError, match=r"sha256 and blake3, and not by 'blake4'.*update"):
        StageRequest.model_validate(tree)


@pytest.mark.parametrize(
    ("transport", "chain", "message"),
    [
        ("http", [4, 3], "do not rise"),
        ("http", [3, 3], "do not rise"),
        ("http", [], "at least 1"),
        ("http", [4, 5], "ends with 5: it ends before the version"),
        ("ipc", [3, 4], "ipc takes whole versions alone"),
        ("nccl", [3, 4], "nccl"),
    ],
)
def test_deltas_of_nothing_are_refused(transport: str, chain: list[int], message: str) -> None:
    tree = golden("stage_request_delta")
    StageRequest.model_validate(tree)
    tree["transport"] = transport
    tree["manifest"]["delta"]["chain"] = chain
    with pytest.raises(ValidationError, match=message):
        StageRequest.model_validate(tree)


def test_wire_and_domain_have_the_same_statuses_and_tasks() -> None:
    assert get_args(WireStatus) == get_args(ParsingStatus)
    assert get_args(WireTask) == get_args(ParsingTask)
    assert get_args(Notation) == get_args(NotationName)
