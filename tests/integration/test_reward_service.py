"""The reward service as a process of its own: honest requests, nonsense, and signals."""

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.errors import InvalidInputError, UnauthorizedError, UnavailableError
from services.host.ports import free_port
from services.http.clients.reward import RewardClient
from services.schemas.rewards import RewardRequest, RewardResponse
from tests.reward_process import GOLDEN, REQUEST, TOKEN, running, start


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("reward") / "log") as (address, _):
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    """A client with the token; afterwards the service must still score correctly."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        yield client
        after = client.post("/v1/rewards", json=REQUEST)
        assert after.status_code == 200
        assert after.json()["groups"][0]["rewards"][0]["status"] == "ok"


def assert_problem(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(response.text, parse_constant=pytest.fail)
    assert {"type", "title", "status", "detail", "retryable"} <= set(problem)
    assert problem["status"] == status
    assert "Traceback" not in response.text
    for word in words:
        assert word in response.text
    return problem


async def test_the_client_gets_the_golden_response(url: str) -> None:
    expected = RewardResponse.model_validate_json((GOLDEN / "reward_response.json").read_text())
    async with RewardClient(url, token=TOKEN) as client:
        response = await client.score(RewardRequest.model_validate(REQUEST))
    assert response.rubric_version == expected.rubric_version
    scored = response.groups[0].rewards
    assert [r.total for r in scored] == pytest.approx([r.total for r in expected.groups[0].rewards])


def test_health_metrics_and_rubrics(http: httpx.Client) -> None:
    health = http.get("/healthz", headers={"Authorization": ""}).json()
    assert health == {"status": "alive", "service": "reward service"}
    assert http.get("/readyz").json() == {"ready": True, "reason": None}
    http.post("/v1/rewards", json=REQUEST)
    metrics = http.get("/metrics").text
    assert 'reward_completions_total{status="invalid_json"}' in metrics
    assert 'http_requests_total{method="POST",route="/v1/rewards",status="200"}' in metrics
    rubrics = {r["rubric"]["name"]: r for r in http.get("/v1/rubrics").json()["rubrics"]}
    assert set(rubrics) == {"balanced", "r1-soft", "r1-hard", "r1-relaxed"}
    soft = rubrics["r1-soft"]
    assert set(soft["formulas"]) == {"format", "node_category", "node_box", "edge"}
    assert soft["max_total"] == {"sgg": 10.0, "det": 5.0, "cls": 6.0}
    assert set(rubrics["r1-relaxed"]["max_total"]) == {"sgg"}
    assert http.get("/v1/rubrics").json()["terms"]["node_box"]["tasks"] == ["sgg", "det"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'"text"',
        b"null",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"groups": ' + b"9" * 5000 + b"}",
        json.dumps(REQUEST).encode("utf-16"),
    ],
)
def test_what_is_no_request_is_a_problem(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/rewards", content=body)
    if response.status_code != 200:  # UTF-16 is JSON to some, and then it must be scored right
        assert response.status_code in {400, 422}
        assert_problem(response, response.status_code)


GROUP = REQUEST["groups"][0]
OBJECT = GROUP["reference"]["objects"][0]


def with_group(**changes: Any) -> dict[str, Any]:
    return REQUEST | {"groups": [GROUP | changes]}


@pytest.mark.parametrize(
    ("request_body", "path"),
    [
        (REQUEST | {"surprise": 1}, "body.surprise"),
        (REQUEST | {"surprise\ud800": float("nan")}, "body"),
        (REQUEST | {"task": "none"}, "body.task"),
        (REQUEST | {"groups": []}, "body.groups"),
        (REQUEST | {"rubric": "r9"}, "body.rubric"),
        (REQUEST | {"rubric": {"terms": {"edge": float("nan")}}}, "body.rubric.terms.edge"),
        (REQUEST | {"rubric": {"terms": {"edge": "\ud800"}}}, "body.rubric.terms.edge"),
        (with_group(completions="text"), "body.groups.0.completions"),
        (with_group(completions=[1]), "body.groups.0.completions.0"),
        (with_group(group_id="a\ud800"), "body.groups.0.group_id"),
        (with_group(image_size=[0, 1]), "body.groups.0.image_size.0"),
        (with_group(image_size=[float("inf"), 1]), "body.groups.0.image_size.0"),
        (with_group(box_space="inches"), "body.groups.0.box_space"),
        (
            with_group(
                reference={
                    "objects": [OBJECT | {"bbox": [0, 0, float("nan"), 1]}],
                    "relationships": [],
                }
            ),
            "body.groups.0.reference.objects.0.bbox.2",
        ),
        (
            with_group(reference={"objects": [OBJECT | {"bbox": [0, 0, 1]}], "relationships": []}),
            "body.groups.0.reference.objects.0.bbox",
        ),
    ],
)
def test_a_wrong_field_is_named(
    http: httpx.Client, request_body: dict[str, Any], path: str
) -> None:
    response = http.post("/v1/rewards", content=json.dumps(request_body).encode())
    problem = assert_problem(response, 422)
    assert problem["errors"][0]["path"].startswith(path)
    assert problem["errors"][0]["message"]
    assert problem["retryable"] is False


def test_a_million_mistakes_have_a_short_answer(http: httpx.Client) -> None:
    body = with_group(completions=[0] * 200) | {f"x{i}": 0 for i in range(50_000)}
    response = http.post("/v1/rewards", content=json.dumps(body).encode())
    assert_problem(response, 422)
    assert len(response.content) < 5000


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_what_is_not_called_json_is_refused(http: httpx.Client, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    response = http.post("/v1/rewards", content=json.dumps(REQUEST), headers=headers)
    assert_problem(response, 415, "application/json")


def test_a_bad_group_leaves_the_others_their_rewards(http: httpx.Client) -> None:
    bad_box = {"objects": [OBJECT | {"bbox": [0, 0, float("nan"), 1]}], "relationships": []}
    groups = [
        GROUP,
        GROUP | {"group_id": "bad box", "reference": bad_box},
        "no group",
        GROUP | {"group_id": "half \ud800", "completions": []},
        GROUP | {"group_id": "last"},
    ]
    body = json.dumps(REQUEST | {"groups": groups}).encode()
    answered = http.post("/v1/rewards", content=body)
    assert answered.status_code == 200
    found = RewardResponse.model_validate_json(answered.content).groups
    names = [GROUP["group_id"], "bad box", "", "half ?", "last"]
    assert [group.group_id for group in found] == names
    assert [len(group.rewards) for group in found] == [2, 0, 0, 0, 2]
    assert found[0].rewards == found[4].rewards
    details = [group.error.detail if group.error else None for group in found]
    assert details[0] is details[4] is None
    assert str(details[1]).startswith("groups.1.reference.objects.0.bbox.2: ")
    assert str(details[2]).startswith("groups.2: ")
    assert str(details[3]).startswith("groups.3.")
    assert "reward_group_errors_total 3.0" in http.get("/metrics").text


def test_a_request_has_limits_on_counts(http: httpx.Client) -> None:
    many_groups = REQUEST | {"groups": [GROUP] * 1025}
    assert_problem(http.post("/v1/rewards", json=many_groups), 413, "1025 groups", "at most 1024")
    full = GROUP | {"completions": [""] * 256, "num_tokens": None}
    many_completions = REQUEST | {"groups": [full] * 65}
    problem = assert_problem(http.post("/v1/rewards", json=many_completions), 413)
    assert "16640 completions; send at most 16384" in problem["detail"]
    assert problem["retryable"] is False


def test_semantic_oddities_are_scored(http: httpx.Client) -> None:
    odd = {"objects": [OBJECT, OBJECT, {"id": "x.1", "bbox": [9, 9, 1, 1]}], "relationships": []}
    empty: dict[str, Any] = {"objects": [], "relationships": []}
    groups = [GROUP | {"reference": odd}, GROUP | {"reference": empty}, GROUP]
    body = REQUEST | {"rubric": "r1-soft", "groups": groups}
    groups = http.post("/v1/rewards", json=body).json()["groups"]
    assert [round(g["rewards"][0]["total"]) for g in groups] == [5, 1, 10]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused(http: httpx.Client, chunked: bool) -> None:
    piece = b" " * 1_000_000
    content = (piece for _ in range(33)) if chunked else piece * 33
    assert_problem(http.post("/v1/rewards", content=content), 413, "32000000")


def test_a_false_content_length_does_not_help(url: str, http: httpx.Client) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall((head + "Content-Length: -5\r\n\r\n" + "x" * 100).encode())
        assert b"400" in connection.recv(1000).split(b"\r\n")[0]


def test_deep_nesting_is_refused(http: httpx.Client) -> None:
    for body in (b"[" * 100_000, b'{"rubric":' * 40 + b"1" + b"}" * 40):
        assert_problem(http.post("/v1/rewards", content=body), 422, "nested deeper than 32")


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", "Bearer ä"])
def test_a_wrong_token_is_refused_before_the_body_is_read(http: httpx.Client, given: str) -> None:
    headers = {b"authorization": given.encode("latin-1")}
    response = http.post("/v1/rewards", content=b"{", headers=headers)
    assert_problem(response, 401, "data token")
    assert response.headers["www-authenticate"] == "Bearer"
    assert_problem(http.get("/v1/rubrics", headers=headers), 401)


def test_a_completion_may_hold_any_text(http: httpx.Client) -> None:
    texts = ["\ud800", "\x00", "<answer>\U0001f600{", "\u202e"]
    body = json.dumps(with_group(completions=texts, num_tokens=None)).encode()
    rewards = http.post("/v1/rewards", content=body).json()["groups"][0]["rewards"]
    assert [r["total"] for r in rewards] == [0] * 4


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    assert_problem(http.get("/v1/nothing"), 404)
    assert_problem(http.get("/v1/rewards"), 405)


async def test_health_answers_while_the_line_is_full(url: str) -> None:
    """More requests than may wait: some are refused, to come back later; health stays quick."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    honest = json.dumps(REQUEST | {"groups": [GROUP] * 500}).encode()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, trust_env=False, timeout=120, limits=limits
    ) as client:
        crowd = [
            asyncio.create_task(client.post("/v1/rewards", content=honest)) for _ in range(100)
        ]
        depths = []
        while not all(request.done() for request in crowd):
            for path in ("/healthz", "/readyz"):
                assert (await client.get(path)).status_code == 200
            depths.append(_queue_depth((await client.get("/metrics")).text))
        answers = [request.result() for request in crowd]
        assert _queue_depth((await client.get("/metrics")).text) == 0
    refused = [answer for answer in answers if answer.status_code != 200]
    # Some are answered while others still arrive.
    assert 32 < max(depths) <= 64
    assert 0 < len(refused) <= 36
    for answer in refused:
        problem = assert_problem(answer, 503, "64 requests wait")
        assert problem["retryable"] is True
        assert answer.headers["retry-after"] == "1"


def _queue_depth(metrics: str) -> float:
    lines = (line.split() for line in metrics.splitlines())
    return next(float(line[1]) for line in lines if line[0] == "reward_queue_depth")


async def test_the_client_raises_what_the_service_says(url: str) -> None:
    request = RewardRequest.model_validate(REQUEST)
    async with RewardClient(url, token="wrong") as client:
        with pytest.raises(UnauthorizedError, match="data token"):
            await client.score(request)
    async with RewardClient(url, token=TOKEN) as client:
        with pytest.raises(InvalidInputError, match=r"body\.rubric: no rubric 'r9'"):
            await client.score(request.model_copy(update={"rubric": "r9"}))


async def test_the_client_waits_for_a_service_that_restarts(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    request = RewardRequest.model_validate(REQUEST)
    async with RewardClient(address, token=TOKEN, timeout_s=0.5) as hasty:
        with pytest.raises(UnavailableError, match=address):
            await hasty.score(request)
    process = start(address, tmp_path / "log")
    try:
        async with RewardClient(address, token=TOKEN, timeout_s=120) as patient:
            assert len((await patient.score(request)).groups) == 1
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_said_at_once(url: str, tmp_path: Path) -> None:
    process = start(url, tmp_path / "log")
    assert process.wait() == 1
    log = (tmp_path / "log").read_text()
    assert log.strip().splitlines()[-1].startswith("services.errors.SettingsError: reward service")
    assert "Address already in use" in log


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    process = start("http://0.0.0.0:0", tmp_path / "log", token="short")
    assert process.wait() == 1
    said = (tmp_path / "log").read_text().splitlines()[-1]
    assert "without SGG_DATA_TOKEN of 16 characters or more" in said


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_it_gracefully(
    tmp_path: Path, workers: int, sent: signal.Signals, code: int
) -> None:
    log = tmp_path / "log"
    with running(log, reward={"workers": workers}) as (_, process):
        process.send_signal(sent)
        # A KeyboardInterrupt that nobody catches ends Python by the signal itself.
        assert process.wait() in {code, -sent if sent == signal.SIGINT else code}
    assert "Finished server process" in log.read_text()
