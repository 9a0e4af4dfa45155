"""The documentation as a site: built strictly, held against the code, and read in a browser."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from docs.hooks.commands import commands
from docs.hooks.links import rewritten
from docs.hooks.rest import service_apps
from docs.hooks.site import whole_nav
from services.settings import Settings

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *f"-m mkdocs build --strict -f {config} -d {site}".split()]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Text(HTMLParser):
    """Table rows as lists of texts, and what a page loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        """By the first cell."""
        self.loaded: list[str] = []
        self._cells: list[str] | None = None
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "tr":
            self._cells = []
        elif tag in ("td", "th") and self._cells is not None:
            self._cells.append("")
        for name in {"script": ["src"], "img": ["src"], "link": ["href"], "iframe": ["src"]}.get(
            tag, []
        ):
            self.loaded.append(found.get(name) or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._cells:
            self._cells = [cell.strip() for cell in self._cells]
            self.rows[self._cells[0]] = self._cells
            self._cells = None

    def handle_data(self, data: str) -> None:
        if self._cells:
            self._cells[-1] += data


def test_every_setting_has_a_row_with_its_meaning(site: Path) -> None:
    page = (site / "reference/settings.html").read_text()
    for section, field in Settings.model_fields.items():
        assert f'id="{section}"' in page
        assert field.annotation is not None
        for name in field.annotation.model_fields:
            assert f'id="{section}.{name}"' in page
    rows = Text(site / "reference/settings.html").rows
    assert rows["group_size"] == ["group_size", "integer", "8", "≥ 2", "Completions of one prompt."]
    assert rows["clip_low"][1:4] == ["number", "0.2", "> 0, < 1"]
    assert rows["transport"][1] == " or ".join(("shm", "disk", "http", "nccl", "ipc", "lora"))
    assert [name for name, row in rows.items() if not row[-1]] == []


def test_a_setting_that_a_page_names_leads_to_its_row(site: Path) -> None:
    page = (site / "deploy/workstation.html").read_text()
    link = '<a href="../reference/settings.html#trainer.num_ranks"><code>trainer.num_ranks'
    assert f"{link} = 2</code></a>" in page
    assert "settings.html#run.toml" not in (site / "training.html").read_text()


def test_every_command_and_route_is_there(site: Path) -> None:
    rows = Text(site / "reference/commands.html").rows
    assert set(commands()) == rows.keys() - {"command"}
    page = (site / "reference/rest.html").read_text()
    for app in service_apps().values():
        for path, operations in app.openapi()["paths"].items():
            assert all(f"{method.upper()} {path}</code>" in page for method in operations)


def test_metrics_say_their_labels(site: Path) -> None:
    rows = Text(site / "reference/prometheus.html").rows
    assert rows["sgg_queue_groups"][1:3] == ["gauge", "stream, state"]
    assert rows["rollout_groups_total"][1:] == ["counter", "outcome", "Sampled groups"]
    assert rows["http_requests_total"][2] == "method, route, status"
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    written = (
        "sgg_trainer_",
        "sgg_evaluation_",
    )  # keys of metrics.jsonl, which docs/metrics.md has
    names = set(re.findall(r"\b(?:sgg|rollout|reward|http)_\w+(?=[{\[ )])", alerts))
    assert {name for name in names if not name.startswith(written)} <= rows.keys()
    assert "sgg_queue_oldest_age_seconds" in names


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert [url for url in Text(page).loaded if "//" in url] == []
        assert 'class="mermaid"' not in page.read_text()  # whose program would be loaded
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()) == []


def test_a_dead_link_and_a_dead_anchor_are_told(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# One\n\n[there](#one) [not](#two) [none](none.md)\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: []\nnav: [index.md]\n")
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2
    assert "link 'none.md', but the target is not found" in warnings[0]
    assert "link '#two', but there is no such anchor" in warnings[1]


def test_links_that_leave_docs_fit_the_site() -> None:
    text = (
        "![p](../assets/x.png) [a](../SECURITY.md#token) [b](../configs/) [c](#here) "
        "[d](https://example.org) [e](deploy/gpu.md)\n```\n[f](../README.md)\n```\n"
    )
    assert rewritten(text, "docs/data.md", "data.md") == (
        "![p](files/assets/x.png) [a](security.md#token) b [c](#here) "
        "[d](https://example.org) [e](deploy/gpu.md)\n```\n[f](../README.md)\n```\n"
    )
    of_a_run = "[a](../docs/deploy/gpu.md#one)"
    assert rewritten(of_a_run, "configs/README.md", "configs.md") == "[a](deploy/gpu.md#one)"


def test_a_new_page_is_found_under_more() -> None:
    nav = [{"Home": "index.md"}, {"Train": ["training.md", {"Rewards": "rewards.md"}]}]
    assert whole_nav(nav, ["rewards.md", "index.md", "training.md"]) == nav
    assert whole_nav(nav, ["rewards.md", "new.md"]) == [*nav, {"More": ["new.md"]}]


def test_the_search_works_from_disk_and_asks_no_host(site: Path) -> None:
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "tutorials/operator.html").as_uri())
        page.click(".md-search__input")
        page.keyboard.type("max_policy_lag")
        found = page.locator(".md-search-result__item a[href*='settings.html']").first
        expect(found).to_be_visible()
        assert page.locator(".md-tabs__item").count() <= 12
        page.set_viewport_size({"width": 390, "height": 844})
        for name in ("index.html", "reference/settings.html", "operations.html"):
            page.goto((site / name).as_uri())
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert page.evaluate(wide) is False
        browser.close()
    assert [url for url in asked if not url.startswith("file:")] == []
