"""The console's pages over HTTP: what is there, what is not, and what may never run."""

import hashlib
import json
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient

from cli.commands.train.serve import monitor_app
from cli.settings import service_settings
from console.app import create_console
from console.export import export
from console.web import HERE, TABS, page_router
from services.errors import SettingsError
from services.http.app import bind
from tests.console_runs import make_run


class Elements(HTMLParser):
    """Finds what only a page that trusts a run's words would hold."""

    def __init__(self, scripts: str = "/static/") -> None:
        super().__init__()
        self._scripts = scripts
        self.forbidden: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [
            link for name in ("href", "src") if (link := given.get(name) or "#")[0] != "#"
        ]
        is_data = given.get("type") == "application/json"
        inline = tag == "script" and self._scripts not in (given.get("src") or "") and not is_data
        steers = any(name.startswith("on") or name == "style" for name in given)
        if inline or steers or given.get("src") == "x" or "javascript:" in str(given.values()):
            self.forbidden.append(self.get_starttag_text() or tag)


HOSTILE = "<img src=x onerror=alert(1)> & 'q'"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "live", steps=30, total=100)
    make_run(root / HOSTILE, steps=30, total=30, seed=1, ended_s=900)
    broken = make_run(root / "broken", steps=3, total=30, ended_s=900)
    broken.config.write_text("[later]\nx = 1\n[reward]\nrubric = '<b>'\n")
    broken.metrics.write_text('{"step": "a", "reward_mean": {"b": []}, "time": "<i>"}\nhalf')
    (root / "photos").mkdir()
    return TestClient(create_console(root), base_url="http://localhost")


def test_every_page_of_every_run_is_there_and_runs_nothing_inline(client: TestClient) -> None:
    urls = ["/", "/compare?run=live&run=broken"]
    for run in ("live", HOSTILE, "broken"):
        page = client.get("/runs/" + run.replace("%", "%25"))
        assert page.status_code == 200
        urls += [f"/runs/{run}{rest}" for rest in (*TABS.values(), "/logs/trainer.log")]
    for url in urls:
        page = client.get(url)
        assert page.status_code == 200, url
        assert page.headers["content-security-policy"].startswith("default-src 'self'")
        assert page.headers["x-content-type-options"] == "nosniff"
        found = Elements()
        found.feed(page.text)
        assert found.forbidden == [], url


def test_what_is_missing_says_what_to_do(client: TestClient) -> None:
    for path, words in (
        ("/runs/none", "no run"),
        ("/runs/photos", "neither config.toml nor metrics.jsonl"),
        ("/runs/live/logs/none.log", "has no log"),
        ("/runs/live/logs/..%2Fconfig.toml", "Not Found"),
    ):
        answer = client.get(path)
        assert answer.status_code == 404
        assert words in answer.json()["detail"], path
    few = client.get("/compare?run=live")
    assert few.status_code == 422
    assert "tick two to 8 runs" in few.text
    assert "photos" in client.get("/").text, "a folder that is no run is named"


@pytest.mark.parametrize("path", ["/nowhere/<b>", "/runs/live/nowhere", "/runs/none"])
def test_what_is_not_there_is_a_page_for_browsers_and_json_for_others(
    client: TestClient, path: str
) -> None:
    page = client.get(path, headers=BROWSER)
    assert page.status_code == 404
    assert "<h1>Not here</h1>" in page.text
    assert "<b>" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    problem = client.get(path)
    assert (problem.status_code, problem.json()["status"]) == (404, 404)
    assert problem.headers["content-type"] == "application/problem+json"


def test_a_run_of_another_release_is_shown_as_far_as_it_is_understood(client: TestClient) -> None:
    page = client.get("/runs/broken")
    assert "Stopped" in page.text
    assert "this release has no such setting" in client.get("/runs/broken/settings").text
    assert "&lt;b&gt;" in client.get("/").text
    assert client.get("/runs/broken/curves.json").json()["steps"]["mean"] == {}


def test_what_differs_is_beside_each_other(client: TestClient) -> None:
    page = client.get("/compare", params={"run": ["live", HOSTILE]}).text
    assert "run.seed" in page
    assert "trainer.num_steps" in page
    assert "redis.url" not in page
    paired = client.get("/compare/heldout", params={"run": ["live", HOSTILE]}).text
    assert "live has no answers about held-out images since it trains" in paired


def test_vendored_files_are_those_of_their_packages() -> None:
    folder = HERE / "static/vendor"
    listed = tomllib.loads((folder / "VENDORED.toml").read_text())
    there = {path.name for path in folder.iterdir()} - {"VENDORED.toml"}
    assert listed.keys() == there
    for name, entry in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"], name
        assert entry["licence"] in ("0BSD", "MIT")


def test_pages_ask_for_the_token(tmp_path: Path) -> None:
    app = create_console(tmp_path, data_token="secret")
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/", headers={"Accept": "application/json"}).status_code == 401
    assert client.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200
    asked = client.get("/", headers={"Accept": "text/html", "Sec-Fetch-Mode": "navigate"})
    assert asked.url.path == "/login"


def test_what_fails_is_a_page_with_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = make_run(tmp_path / "run", steps=0, total=9)
    files.metrics.unlink()
    files.metrics.mkdir()
    app, router = create_console(tmp_path), page_router()

    @router.get("/wrong")
    def wrong(count: int) -> None:
        raise KeyError(count)

    app.include_router(router)
    client = TestClient(app, base_url="http://localhost")
    for path, status, words in (
        ("/runs/run", 503, f"{files.metrics} cannot be read: Is a directory. It has to be a file"),
        ("/wrong?count=many", 422, "query.count: Input should be a valid integer"),
        ("/wrong?count=1", 500, "This is a mistake of the console; its log has the traceback."),
    ):
        answer = client.get(path, headers=BROWSER)
        assert answer.status_code == status
        assert words in answer.text
        assert "<h1>That did not work</h1>" in answer.text
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "KeyError: 1" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        ({}, "SGG_DATA_TOKEN"),
        ({"data_token": "d" * 16}, ""),
        ({"data_token": "d" * 16, "admin_token": "short"}, "SGG_ADMIN_TOKEN"),
        ({"admin_token": "a" * 16}, "SGG_DATA_TOKEN"),
        ({"data_token": "d" * 16, "admin_token": "a" * 16}, ""),
    ],
)
def test_beyond_this_machine_only_what_is_missing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: dict[str, str], missing: str
) -> None:
    for kind in ("data_token", "admin_token"):
        monkeypatch.delenv(f"SGG_{kind.upper()}", raising=False)
    for kind, token in tokens.items():
        monkeypatch.setenv(f"SGG_{kind.upper()}", token)
    settings = service_settings(None, [f"run.root={tmp_path}"])
    data, admin = tokens.get("data_token"), tokens.get("admin_token")
    console = create_console(tmp_path, data_token=data, admin_token=admin)
    for app in (console, monitor_app(settings)):
        if not missing:
            bind(app, "http://0.0.0.0:0").close()
            continue
        with pytest.raises(SettingsError) as refused:
            bind(app, "http://0.0.0.0:0")
        assert f"without {missing} of 16 characters" in refused.value.message


async def test_a_copy_leaves_a_damaged_run_out_and_says_why(tmp_path: Path) -> None:
    good = make_run(tmp_path / "runs/good", steps=3, total=9)
    (good.rollouts / "index.rank0.jsonl").mkdir(parents=True)
    for name in ("metrics.jsonl", "events.jsonl"):
        file = make_run(tmp_path / "runs" / f"bad {name}", steps=0, total=9).path / name
        file.unlink(missing_ok=True)
        file.mkdir()
    copied = await export(tmp_path / "runs", tmp_path / "copy")
    assert copied.num_runs == 1
    assert copied.left_out.keys() == {"bad metrics.jsonl", "bad events.jsonl"}
    for reason in copied.left_out.values():
        assert "Is a directory" in reason
    assert [path.name for path in (tmp_path / "copy/runs").iterdir()] == ["good"]
    rollouts = (tmp_path / "copy/runs/good/rollouts/index.html").read_text()
    assert "index.rank0.jsonl cannot be read: Is a directory" in rollouts, "the rest is copied"
    index = (tmp_path / "copy/index.html").read_text()
    assert "bad metrics.jsonl" in index
    assert index.count('href="runs/') == 1


async def test_a_copy_opens_from_disk(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / HOSTILE, steps=30, total=30, ended_s=900)
    make_run(tmp_path / "runs" / "live", steps=30, total=100)
    copy = tmp_path / "copy"
    copied = await export(tmp_path / "runs", copy)
    assert copied[:2] == (2, {})
    assert copied.num_bytes == sum(f.stat().st_size for f in copy.rglob("*") if f.is_file())
    pages = list(copy.rglob("*.html"))
    assert len(pages) == 2 + 2 * 6, "the list, both compared, five tabs and a log each"
    for page in pages:
        found = Elements("static/")
        found.feed(page.read_text())
        assert found.forbidden == []
        assert found.links, "style and scripts at least"
        for link in found.links:
            assert (page.parent / unquote(link)).is_file(), link
    run = (copy / "runs" / HOSTILE / "index.html").read_text()
    data = run.partition('id="curves">')[2].partition("</script>")[0]
    assert len(json.loads(data)["steps"]["mean"]["reward_mean"]) == 30
    assert "sse-connect" not in run


def test_without_an_admin_token_nothing_can_be_changed_beside_a_data_token(tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=1, total=2)
    path, token = "/admin/runs/run/dead/1-0/drop", {"Authorization": "Bearer secret"}
    closed = TestClient(create_console(tmp_path, data_token="secret"), base_url="http://localhost")
    assert closed.post(path, headers=token).status_code == 404
    opened = TestClient(create_console(tmp_path), base_url="http://localhost")
    assert opened.post(path.replace("1-0", "x")).status_code == 422
