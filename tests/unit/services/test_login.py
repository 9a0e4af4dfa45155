"""A browser's way in: the form, the cookie, what it may do, and the way out."""

import hashlib
import re
import tomllib
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from services.http.app import create_app
from services.http.pages import FOLDER
from services.http.proof import cookie_name, is_logged_in, login_cookie

ROOT = Path(__file__).parents[3]
OWN = {"Sec-Fetch-Site": "same-origin"}
PAGE = {"Accept": "text/html,*/*;q=0.8"}


def make_app(data: str | None = "d" * 16, admin: str | None = "a" * 16) -> FastAPI:
    app = create_app(
        title="test service",
        readiness=lambda: None,
        body_limit_bytes=1000,
        data_token=data,
        admin_token=admin,
        admin_paths=("/v1/weights",),
    )

    @app.get("/v1/data")
    @app.post("/v1/data")
    @app.post("/v1/weights/stage")
    async def answer() -> str:
        return "yes"

    return app


def browser(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8100")


async def log_in(client: httpx.AsyncClient, token: str, place: str = "/docs") -> httpx.Response:
    return await client.post("/login", data={"token": token, "next": place}, headers=OWN)


async def test_a_person_is_led_to_the_form_and_a_program_gets_a_problem() -> None:
    async with browser(make_app()) as client:
        led = await client.get("/v1/data?a=1&b=%2F", headers=PAGE)
        assert (led.status_code, led.headers["location"]) == (
            303,
            "/login?next=%2Fv1%2Fdata%3Fa%3D1%26b%3D%252F",
        )
        form = await client.get(led.headers["location"])
        assert 'name="next" value="/v1/data?a=1&amp;b=%2F"' in form.text
        assert "script-src" not in form.headers["content-security-policy"]
        assert form.headers["content-security-policy"].startswith("default-src 'self';")
        for path in set(re.findall(r'(?:href|src)="(/[^"]*)"', form.text)):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/v1/data")).json()["type"] == "urn:sgg:UnauthorizedError"
        assert (await client.post("/v1/data", headers=PAGE | OWN)).status_code == 401


async def test_a_login_opens_what_its_token_opens_until_the_logout() -> None:
    async with browser(make_app()) as client:
        wrong = await log_in(client, "d" * 15, '/docs"><script>')
        assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
        assert "not a token of this service" in wrong.text
        assert "<script>" not in wrong.text
        right = await log_in(client, "d" * 16)
        assert (right.status_code, right.headers["location"]) == (303, "/docs")
        name, value = cookie_name("d" * 16), client.cookies[cookie_name("d" * 16)]
        assert right.headers["set-cookie"] == (
            f"{name}={value}; HttpOnly; Max-Age=43200; Path=/; SameSite=strict"
        )
        assert "d" * 8 not in right.headers["set-cookie"]
        assert (await client.get("/v1/data", headers=PAGE)).status_code == 200
        assert (await client.get("/docs", headers=PAGE)).status_code == 200
        assert (await client.post("/v1/weights/stage", headers=OWN)).status_code == 401
        await log_in(client, "a" * 16)
        assert (await client.post("/v1/weights/stage", headers=OWN)).status_code == 200
        out = await client.post("/logout", headers=OWN)
        assert (out.status_code, out.headers["location"]) == (303, "/login")
        assert not client.cookies
        assert (await client.get("/v1/data")).status_code == 401


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", OWN, 200),
        ("POST", {"Origin": "http://localhost:8100"}, 200),
        ("POST", {}, 401),  # a cookie alone
        ("POST", {"Sec-Fetch-Site": "same-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8100"}, 403),
        ("POST", {"Origin": "http://localhost:9999"}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("GET", {}, 200),
        ("GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 401),
        ("GET", {"Origin": "http://localhost:9999"}, 401),
    ],
)
async def test_the_cookie_serves_pages_of_this_service_alone(
    method: str, headers: dict[str, str], status: int
) -> None:
    async with browser(make_app()) as client:
        await log_in(client, "d" * 16)
        answer = await client.request(method, "/v1/data", headers=headers)
        assert answer.status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:9999", "null"])
async def test_a_page_of_another_origin_changes_nothing_without_tokens_either(origin: str) -> None:
    async with browser(make_app(None, None)) as client:
        answer = await client.post("/v1/data", headers={"Origin": origin})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:sgg:CrossOriginError")
        assert (await client.post("/v1/data")).status_code == 200
        assert (await client.get("/login")).status_code == 404
    async with browser(make_app()) as client:  # nor does it log a browser in or out
        for path in ("/login", "/logout"):
            answer = await client.post(path, data={"token": "d" * 16}, headers={"Origin": origin})
            assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)


@pytest.mark.parametrize(
    "place", ["//evil.example", "/\\evil.example", "http://evil.example", "", "/\t/evil.example"]
)
async def test_a_login_leads_nowhere_else(place: str) -> None:
    async with browser(make_app()) as client:
        assert (await log_in(client, "d" * 16, place)).headers["location"] == "/"


async def test_a_form_that_is_too_large_is_refused() -> None:
    async with browser(make_app()) as client:
        answer = await client.post("/login", content=b"&" * 9000, headers=OWN)
        assert answer.status_code == 413


def test_a_cookie_is_a_proof_of_one_token_until_its_date() -> None:
    name, value = login_cookie("token", 1000)
    assert is_logged_in({name: value}, "token", 999)
    assert not is_logged_in({name: value}, "token", 1000)
    assert not is_logged_in({name: value.replace("1000", "2000")}, "token", 999)
    assert not is_logged_in({cookie_name("other"): value}, "other", 999)
    for broken in ("", ".", "1000", "1000.", "²000.x", "-1.x", "1" * 5000, value + "0"):
        assert not is_logged_in({name: broken}, "token", 999)


@pytest.mark.parametrize("tokens", [None, "d" * 16])
async def test_the_start_leads_to_the_docs_which_load_nothing_from_elsewhere(
    tokens: str | None,
) -> None:
    async with browser(make_app(tokens, tokens)) as client:
        if tokens:
            await log_in(client, tokens)
        start = await client.get("/")
        assert (start.status_code, start.headers["location"]) == (307, "/docs")
        docs = await client.get("/docs")
        assert ("Log out" in docs.text) == bool(tokens)
        assert not re.search(r"<script(?! src)| on\w+=|https?:|style=", docs.text)
        for path in set(re.findall(r'(?:href|src)="(/pages/[^"]*)"', docs.text)):
            assert (await client.get(path)).status_code == 200


async def test_an_app_may_have_a_start_of_its_own() -> None:
    app = make_app(None, None)
    app.get("/")(lambda: "mine")
    async with browser(app) as client:
        assert (await client.get("/")).json() == "mine"


VENDORED = [file.parent for file in ROOT.glob("[a-z]*/**/VENDORED.toml")]


def test_swagger_ui_is_vendored() -> None:
    assert FOLDER / "vendor" in VENDORED


@pytest.mark.parametrize("folder", VENDORED, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_vendored_files_are_those_of_their_packages(folder: Path) -> None:
    listed = tomllib.loads((folder / "VENDORED.toml").read_text())
    found = {file.name for file in folder.iterdir()} - {"VENDORED.toml"}
    assert set(listed) == found
    for name, entry in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert all(entry[key] for key in ("package", "version", "licence"))
