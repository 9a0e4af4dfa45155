"""The service against its own OpenAPI page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from services.schemas.rewards import RewardResponse
from tests.openapi_fuzzing import assert_as_documented
from tests.reward_process import GOLDEN, REQUEST, TOKEN, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
AUTHORIZATION = f"Bearer {TOKEN}"


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
    assert_as_documented(url, TOKEN, tmp_path, num_operations=5, max_examples=40)


def test_the_page_shows_the_worked_example(page: dict[str, Any]) -> None:
    post = page["paths"]["/v1/rewards"]["post"]
    shown = post["requestBody"]["content"]["application/json"]["example"]
    assert {"schema_version": "1.0", **shown} == REQUEST, "a person need not say the version"
    answer = post["responses"]["200"]["content"]["application/json"]
    assert answer["schema"] == {"$ref": "#/components/schemas/RewardResponse"}
    golden = RewardResponse.model_validate_json((GOLDEN / "reward_response.json").read_text())
    scored = RewardResponse.model_validate(answer["example"])
    assert [g.group_id for g in scored.groups] == [g.group_id for g in golden.groups]
    assert scored.rubric_version == golden.rubric_version


def test_the_page_describes_bodies_that_the_handler_reads_itself(page: dict[str, Any]) -> None:
    schemas = page["components"]["schemas"]
    assert set(schemas["RewardRequest"]["properties"]) == {
        *("schema_version", "task", "rubric", "credit", "groups")
    }
    assert "balanced" in str(schemas["RewardRequest"]["properties"]["rubric"])
    assert "beta" in schemas["Rubric"]["properties"]


def test_the_page_names_every_problem_and_the_token(page: dict[str, Any]) -> None:
    problem = {"$ref": "#/components/schemas/Problem"}
    everywhere = {"400", "408", "421", "431", "500"}
    for path, method, statuses in (
        ("/v1/rewards", "post", {*everywhere, "401", "403", "413", "415", "422", "503"}),
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


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no chromium: apt-get install chromium"
)
def test_a_person_logs_in_and_tries_the_example_with_nothing_from_elsewhere(url: str) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"{url}/")
        page.fill("#token", TOKEN)
        page.click("text=Log in")
        page.wait_for_url(f"{url}/docs")
        page.click("text=Score every completion of every group")
        page.click(".try-out__btn")
        page.click(".execute")
        answer = page.locator(".live-responses-table .response")
        expect(answer).to_contain_text("200")
        expect(answer).to_contain_text("rubric_version")
        assert page.evaluate("document.cookie") == ""
        page.click("text=Log out")
        page.wait_for_url(f"{url}/login")
        page.goto(f"{url}/docs")
        expect(page.locator("#token")).to_be_visible()
        browser.close()
    elsewhere = [one for one in asked if not one.startswith((url, "data:"))]
    assert (elsewhere, complaints) == ([], [])
    assert not any(TOKEN in one for one in asked)
