"""Bytes to groups: one bad group stands alone, limits hold, hostile bodies cost little."""

import json
from typing import Any

import pytest

from reward_service.service.request_parsing import ReadRequest, read_request
from services.errors import InvalidInputError, TooLargeError
from services.schemas.rewards import ScoredGroup
from tests.reward_process import REQUEST

GROUP: dict[str, Any] = REQUEST["groups"][0]
NAME = GROUP["group_id"]


def read(*groups: Any, **changes: Any) -> ReadRequest:
    return read_request(json.dumps(REQUEST | {"groups": groups} | changes).encode())


def refused(read_request: ReadRequest, place: int) -> str:
    error = read_request.refused[place].error
    assert error is not None
    assert error.retryable is False
    return error.detail


def with_object(**changes: Any) -> dict[str, Any]:
    first = GROUP["reference"]["objects"][0]
    return GROUP | {"reference": {"objects": [first | changes], "relationships": []}}


def test_an_honest_request_is_read_whole() -> None:
    found = read(GROUP, GROUP)
    assert (found.task, found.rubric) == ("sgg", "balanced")
    assert [len(group.completions) for group in found.groups] == [2, 2]
    assert not found.refused


@pytest.mark.parametrize(
    ("bad", "group_id", "detail"),
    [
        (None, "", "groups.1: "),
        ([], "", "groups.1: "),
        ({}, "", "groups.1.group_id: Field required (and more)"),
        (GROUP | {"group_id": 7}, "", "groups.1.group_id: "),
        (GROUP | {"group_id": "x" * 300}, "x" * 200, "groups.1.group_id: "),
        (GROUP | {"surprise": 1}, NAME, "groups.1.surprise: "),
        (GROUP | {"num_tokens": [1]}, NAME, "groups.1: Value error, num_tokens has 1"),
        (
            with_object(bbox=[0, 0, float("inf"), 1]),
            GROUP["group_id"],
            "groups.1.reference.objects",
        ),
        (with_object(bbox=[0, 0, 10**400, 1]), NAME, "groups.1.reference.objects"),
        (with_object(id="a\ud800"), NAME, "groups.1.reference.objects.0.id"),
        (with_object(**{f"x{i}": 0 for i in range(40)}), NAME, "groups.1: an object"),
        (GROUP | {f"x{i}": 0 for i in range(40)}, NAME, "groups.1: an object with"),
    ],
)
def test_a_bad_group_is_set_aside_with_its_mistake(bad: Any, group_id: str, detail: str) -> None:
    found = read(GROUP, bad, GROUP)
    assert len(found.groups) == 2
    assert list(found.refused) == [1]
    assert found.refused[1].group_id == group_id
    assert refused(found, 1).startswith(detail)


def test_answers_come_back_in_the_order_of_the_request() -> None:
    found = read("bad", GROUP | {"group_id": "a"}, "bad", GROUP | {"group_id": "b"}, "bad")
    scored = [ScoredGroup(group_id=group.group_id, rewards=[]) for group in found.groups]
    assert [group.group_id for group in found.in_order(scored)] == ["", "a", "", "b", ""]


def test_without_a_valid_group_the_request_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="none of the 30 groups is valid") as caught:
        read(*["bad"] * 30)
    assert len(caught.value.mistakes) == 20
    assert caught.value.mistakes[7].path == "body.groups.7"


def test_a_mistake_outside_of_groups_refuses_the_request() -> None:
    with pytest.raises(InvalidInputError, match=r"body\.task"):
        read(GROUP, "bad", task="none")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: not JSON"),
        (b"\xff\xfe{", "body: not JSON"),
        (b"9" * 5000, "body: not JSON"),
        (b"[]", "body: not a JSON object"),
        (b"[" * 100, "nested deeper than 32"),
        (b'{"groups": "\\ud800' + b'"' + b',"a":[' * 100, "nested deeper than 32"),
        (b'{"groups": {}}', r"body\.groups: Input should be a valid list"),
        (b'{"groups": []}', r"body\.groups: List should have at least 1"),
        (b"{" + b",".join(b'"x%d":0' % i for i in range(40)) + b"}", "body: an object with over"),
        (
            b'{"groups": [1], "rubric": {"terms": {'
            + b",".join(b'"x%d":0' % i for i in range(10_001))
            + b"}}}",
            r"body\.rubric: an object with over 10000 keys",
        ),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_request(body)


def test_counts_are_limited() -> None:
    with pytest.raises(TooLargeError, match="1025 groups; send at most 1024"):
        read(*[GROUP] * 1025)
    full = GROUP | {"completions": [""] * 256, "num_tokens": None}
    assert sum(len(group.completions) for group in read(*[full] * 64).groups) == 16_384
    with pytest.raises(TooLargeError, match="16386 completions; send at most 16384"):
        read(*[full] * 64, GROUP)


def test_wide_json_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "reward_service.service.request_parsing._parse", lambda _: pytest.fail("it was built")
    )
    keys = b",".join(b'"k%d":0' % i for i in range(600_000))
    for wide in (b"{" + keys + b"}", b'{"groups":[' + b"[]," * 10_000_000 + b"[]]}"):
        with pytest.raises(TooLargeError, match="over 400000 values"):
            read_request(wide)
