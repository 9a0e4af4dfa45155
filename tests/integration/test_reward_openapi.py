"""The service against its own OpenAPI page."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.schemas.rewards import RewardResponse
from tests.reward_process import GOLDEN, REQUEST, TOKEN, running

AUTHORIZATION = f"Bearer {TOKEN}"
# Every check of schemathesis is on but these two, which a JSON Schema cannot decide here:
EXCLUDED = (
    # A rubric of unknown terms, or as many `num_tokens` as there are no completions, fits the
    # schema; it is refused with 422.
    "positive_data_acceptance",
    # A wrong group among good ones is answered with its error and 200, a number may be sent as
    # text, and too many groups are 413.
    "negative_data_rejection",
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("openapi") / "log") as (address, _):
        yield address


@pytest.fixture
def page(url: str) -> dict[str, Any]:
    headers = {"Authorization": AUTHORIZATION}
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json", headers=headers).json()
    return found


def test_schemathesis_finds_no_answer_that_is_not_as_documented(url: str, tmp_path: Path) -> None:
    program = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-c", program, "--no-color", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: {AUTHORIZATION}", "--continue-on-failure"]
    command += ["--max-examples", "80", "--seed", "1", "--exclude-checks", ",".join(EXCLUDED)]
    # In a folder of its own: it writes a cache.
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
    assert "5 selected / 5 total" in found.stdout


def test_the_page_shows_the_worked_example(page: dict[str, Any]) -> None:
    post = page["paths"]["/v1/rewards"]["post"]
    assert post["requestBody"]["content"]["application/json"]["example"] == REQUEST
    answer = post["responses"]["200"]["content"]["application/json"]
    assert answer["schema"] == {"$ref": "#/components/schemas/RewardResponse"}
    golden = RewardResponse.model_validate_json((GOLDEN / "reward_response.json").read_text())
    shown = RewardResponse.model_validate(answer["example"])
    assert [g.group_id for g in shown.groups] == [g.group_id for g in golden.groups]
    assert shown.rubric_version == golden.rubric_version


def test_the_page_describes_bodies_that_the_handler_reads_itself(page: dict[str, Any]) -> None:
    schemas = page["components"]["schemas"]
    assert set(schemas["RewardRequest"]["properties"]) == {"task", "rubric", "groups"}
    assert "balanced" in str(schemas["RewardRequest"]["properties"]["rubric"])
    assert "beta" in schemas["Rubric"]["properties"]


def test_the_page_names_every_problem_and_the_token(page: dict[str, Any]) -> None:
    problem = {"$ref": "#/components/schemas/Problem"}
    everywhere = {"400", "408", "421", "431", "500"}
    for path, method, statuses in (
        ("/v1/rewards", "post", {*everywhere, "401", "413", "415", "422", "503"}),
        ("/v1/rubrics", "get", {*everywhere, "401"}),
    ):
        operation = page["paths"][path][method]
        assert set(operation["responses"]) == {"200", *statuses}
        assert operation["security"] == [{"token": []}]
        for status in statuses:
            content = operation["responses"][status]["content"]["application/problem+json"]
            assert content["schema"] == problem
            assert content["example"]["status"] == int(status)
    assert "security" not in page["paths"]["/healthz"]["get"]
