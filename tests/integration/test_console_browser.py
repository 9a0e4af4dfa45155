"""The console in a real browser: live, finished and hostile runs, from `console.app` itself."""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from console.app import create_console
from services.host.ports import free_port
from services.run_folder import RunFolder
from tests.console_runs import evaluation_row, make_run, step_row, write_events
from tests.integration.test_report_browser import browser  # noqa: F401 - a fixture
from tests.live_servers import served

HOSTILE = "<img src=x onerror=document.title=1> 'q' %2F"
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""A browser without a window never hides a page by itself."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    live = make_run(root / "live", steps=200, total=1000)
    write_events(live, (50, "server_died", "rollout-1 is gone <script>document.title = 1</script>"))
    make_run(root / "done", steps=90, total=90, seed=1, ended_s=9000)
    hostile = make_run(root / HOSTILE, steps=20, total=90, seed=2, ended_s=900, failed=HOSTILE)
    write_events(hostile, (3, HOSTILE, HOSTILE))
    return root


@pytest.fixture(scope="module")
def console(root: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    with served(create_console(root, url=url), url):
        yield url


class Look:
    """A page, and what it asked for and complained of."""

    def __init__(self, of: Browser, console: str, width: int = 1280) -> None:
        context = of.new_context(viewport={"width": width, "height": 900})
        context.set_default_timeout(20_000)
        self.page: Page = context.new_page()
        self.console = console
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))

    def at(self, path: str) -> Page:
        self.page.goto(self.console + path)
        return self.page

    def close(self) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith((self.console, "data:"))] == []
        self.page.context.close()


@pytest.fixture
def look(browser: Browser, console: str) -> Iterator[Look]:  # noqa: F811
    look = Look(browser, console)
    yield look
    look.close()


def test_a_live_run_moves_without_a_reload(look: Look, root: Path) -> None:
    page = look.at("/runs/live")
    expect(page.locator("h1")).to_contain_text("Training: step 200 of 1,000")
    expect(page.locator("figure canvas")).to_have_count(page.locator("figure").count())
    assert page.locator("figure").count() >= 15
    row = step_row(200, 1000, time.time(), random.Random(0)) | {"reward_mean": 77.25}
    with RunFolder(root / "live").metrics.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    expect(page.locator("h1")).to_contain_text("step 201 of 1,000")
    expect(page.locator(".tiles dd").first).to_have_text("77.25")
    expect(page.locator("figure .legend b").first).to_have_text("77.3")


def test_an_evaluation_outside_of_the_steps_is_drawn(look: Look, root: Path) -> None:
    files = make_run(root / "short", steps=3, total=3, ended_s=9000)
    first = json.loads(files.metrics.read_text().partition("\n")[0])["time"]
    rows = [evaluation_row(0, 3, first - 50), evaluation_row(3, 3, first + 400)]
    files.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = look.at("/runs/short")
    held = page.locator("figure", has=page.get_by_role("heading", name="Held-out images"))
    for along, last in (("step", "step 3"), ("time", "after 8 min")):
        page.locator(f"input[value={along}]").check()
        for key, said in (("Home", None), ("End", last)):
            held.locator(".plot").focus()
            page.keyboard.press(key)
            if said:
                expect(held.locator("output")).to_have_text(said)
            over, point = (held.locator(f"{at} >> nth=0") for at in (".u-over", ".u-cursor-pt"))
            box, dot = over.bounding_box(), point.bounding_box()
            assert box is not None
            assert dot is not None
            assert -1 <= dot["x"] + dot["width"] / 2 - box["x"] <= box["width"] + 1
    ticks = "([x, y, of]) => Plot.axes(Plot.number)[of].values(null, x, 0, 0, y)"
    assert page.evaluate(ticks, [[0.9995, 1, 1.0005], 0.0005, 1]) == ["0.9995", "1.0000", "1.0005"]
    assert page.evaluate(ticks, [[0, 2.5e-7, 5e-7], 2.5e-7, 1]) == ["0", "2.5e-7", "5.0e-7"]
    assert page.evaluate(ticks, [[0, 2500, 5000], 2500, 1]) == ["0", "2,500", "5,000"]
    times = ticks.replace("Plot.number", "Plot.duration")
    assert page.evaluate(times, [[30, 60, 90], 30, 0]) == ["30 s", "1 min 0 s", "1 min 30 s"]
    assert page.evaluate("Plot.axes(Plot.number)[0].incrs.every(Number.isInteger)")


def test_a_run_that_is_removed_is_said_to_be_gone(
    root: Path,
    browser: Browser,  # noqa: F811
    console: str,
) -> None:
    files = make_run(root / "removed", steps=3, total=9)
    look = Look(browser, console)
    page = look.at("/runs/removed")
    expect(page.locator("figure canvas").first).to_be_visible()
    files.path.rename(root.parent / "removed")  # at once: a page may look while a folder empties
    expect(page.locator(".gone")).to_be_visible(timeout=60_000)
    expect(page.locator(".away:not(.gone)")).to_be_hidden()
    expect(page.locator("h1")).to_contain_text("step 3 of 9")
    page.context.close()


def test_one_cursor_by_keys_over_steps_or_time(look: Look) -> None:
    page = look.at("/runs/done")
    plots = page.locator("figure .plot")
    expect(page.locator("figure canvas").first).to_be_visible()
    plots.first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("figure output").first).to_have_text("step 88")
    expect(page.locator("figure output").nth(2)).to_have_text("step 88")
    page.locator("input[value=time]").check()
    plots.first.focus()
    page.keyboard.press("Home")
    expect(page.locator("figure output").first).to_have_text("after 0 s")
    page.reload()
    expect(page.locator("input[value=time]")).to_be_checked()


def test_events_and_healthy_ranges_are_explained(look: Look) -> None:
    page = look.at("/runs/live")
    expect(page.locator("figure canvas").first).to_be_visible()
    page.locator("figure .plot").first.focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    expect(page.locator("figure output").first).to_contain_text("rollout-1 is gone <script>")
    entropy = page.locator("figure", has_text="Entropy")
    entropy.get_by_role("button", name="What entropy says").press("Enter")
    expect(entropy.locator(".guide")).to_contain_text("Falls fast: raise algorithm.clip_high")
    page.keyboard.press("Escape")
    expect(entropy.locator(".guide")).to_be_hidden()
    button = entropy.locator(".legend button").first
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    assert page.locator(".findings").get_by_text("truncated rate").count() == 1


def test_hostile_names_and_texts_run_nothing(look: Look) -> None:
    page = look.at("/")
    page.get_by_role("link", name="<img src=x").click()
    expect(page.locator("h1")).to_contain_text("Failed: step 20 of 90")
    expect(page.locator(".notes")).to_contain_text(HOSTILE)
    expect(page.locator("figure canvas").first).to_be_visible()
    for tab in ("Servers", "Settings"):
        page.get_by_role("link", name=tab).click()
        expect(page.locator("h1")).to_be_visible()
    page.get_by_role("link", name="trainer.log").click()
    expect(page.locator("pre")).to_contain_text("<script>document.title = 'run'</script>")
    assert "sgg-rl" in page.title(), "no script of the run has run"


def test_the_list_moves_and_two_runs_are_beside_each_other(look: Look, root: Path) -> None:
    page = look.at("/")
    page.get_by_label("Compare live").check()
    line = page.locator(".runs li", has=page.get_by_label("Compare live"))
    before = line.locator(".spark").first.get_attribute("aria-label")
    files = RunFolder(root / "live")
    with files.metrics.open("a") as stream:
        stream.write(json.dumps(step_row(300, 1000, time.time(), random.Random(0))) + "\n")
    expect(line).to_contain_text("step 301 of 1,000")
    assert line.locator(".spark").first.get_attribute("aria-label") != before
    expect(page.get_by_label("Compare live")).to_be_checked()
    page.get_by_label("Compare done").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("figure canvas").first).to_be_visible()
    expect(page.locator("table")).to_contain_text("trainer.num_steps")
    expect(page.locator("main")).to_contain_text("has no answers about held-out images")


def test_a_page_says_when_its_server_is_gone(root: Path, browser: Browser) -> None:  # noqa: F811
    url = f"http://127.0.0.1:{free_port()}"
    with served(create_console(root, url=url), url):
        look = Look(browser, url)
        page = look.at("/runs/done")
        expect(page.locator("figure canvas").first).to_be_visible()
        expect(page.locator(".away:not(.gone)")).to_be_hidden()
    expect(page.locator(".away:not(.gone)")).to_be_visible()
    expect(page.locator("h1")).to_contain_text("Finished: step 90 of 90")
    with served(create_console(root, url=url), url):
        expect(page.locator(".away:not(.gone)")).to_be_hidden(timeout=60_000)
        with page.expect_request("**/events"):
            page.evaluate(HIDE, True)
            page.evaluate(HIDE, False)
    own = [text for text in look.complaints if not text.startswith("Failed to load resource")]
    assert own == [], "the browser's words on the network apart"
    page.context.close()


@pytest.mark.parametrize("path", ["/", "/runs/live", "/runs/live/servers", "/runs/live/settings"])
def test_nothing_is_wider_than_a_telephone(
    path: str,
    browser: Browser,  # noqa: F811
    console: str,
) -> None:
    look = Look(browser, console, width=400)
    page = look.at(path)
    page.wait_for_load_state("load")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    look.close()
