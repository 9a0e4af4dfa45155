"""Rollouts, held-out images and Try it in a real browser, over the files of the real writer."""

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import pstdev
from typing import Any
from urllib.parse import unquote

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from console.app import create_console
from rollout_service.fake.engine import FakeEngine
from scene_data.dataset import open_dataset
from services.host.ports import free_port
from services.run_folder.records import RolloutRecord, read_rollouts
from services.settings import Settings, dump_settings
from tests import reward_process
from tests.console_runs import make_run
from tests.integration.test_console_browser import Look
from tests.integration.test_report_browser import browser  # noqa: F401 - a fixture
from tests.live_servers import cluster_settings, served, serving
from tests.report_examples import spoilt_line
from tests.rollout_runs import write_run
from tests.unit.console.test_group_pages import HOSTILE, SCRIPT

LIST = "/runs/toys/rollouts"


@dataclass
class Served:
    """A console, and the run that it shows."""

    url: str
    settings: Settings


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Served]:
    """A run with a rollout server and a reward service."""
    folder = tmp_path_factory.mktemp("toys")
    cluster = cluster_settings(folder, f"test-{uuid.uuid4().hex[:12]}", redis_url, "disk")
    sections: dict[str, Any] = {
        "security": cluster.security.model_dump(mode="json"),
        "redis": {"url": redis_url},
    }
    made = write_run(folder, num_groups=6, extra=[HOSTILE, SCRIPT], **sections)
    write_heldout(made)
    make_run(folder / "runs/other", steps=9, total=9, ended_s=900)
    asked = cluster.changed(data={"template": "toy"})
    token = cluster.data_token or ""
    with (
        serving(asked, FakeEngine(tokens_per_s=1e7, max_model_len=4096)) as server,
        reward_process.running(folder / "reward.log", token=token) as (reward_url, _),
    ):
        run = made.changed(rollout={"url": server.url}, reward={"url": reward_url})
        run.run.files.config.write_text(dump_settings(run))
        url = f"http://127.0.0.1:{free_port()}"
        with served(create_console(folder / "runs", url=url), url):
            yield Served(url, run)


def write_heldout(settings: Settings) -> None:
    """Answers from before, of which many parts are wrong, and better ones of now."""
    samples, folder = list(open_dataset(settings.data.heldout or "")), settings.run.files
    for label, rate in (("before", 0.8), ("now", 0.3)):
        rng = random.Random(1)
        lines = [json.dumps(spoilt_line(sample, rng, rate)) for sample in samples]
        folder.heldout(label).write_text("\n".join(lines) + "\n")
    rows: list[dict[str, Any]] = [
        {"step": step, "num_images": 8, "triplet_f1": f1, "failure_rate": 0.1}
        for step, f1 in ((0, 0.05), (2, 0.31), (3, 0.28))
    ]
    folder.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def look(browser: Browser, toys: Served) -> Iterator[Look]:  # noqa: F811
    look = Look(browser, toys.url)
    yield look
    look.close()


def names(page: Page) -> Locator:
    return page.locator(".group .open")


def test_groups_are_found_and_opened_by_keys(look: Look) -> None:
    page = look.at(LIST)
    page.evaluate("window.stays = true")
    page.select_option("[name=state]", "stale")
    expect(names(page)).to_have_text(["toys-e0-r6"])
    assert page.url.endswith(f"{LIST}?state=stale&sort=newest"), "no empty filters"
    assert page.evaluate("window.stays"), "no reload"
    page.select_option("[name=state]", "")
    page.fill("[name=step_from]", "1")
    page.fill("[name=step_to]", "1")
    page.keyboard.press("Enter")
    expect(names(page)).to_have_text([f"toys-e1-r{row}" for row in range(5, -1, -1)])
    page.locator("h1").click()
    for _ in range(3):
        page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator(":focus")).to_have_text("toys-e1-r4")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("toys-e1-r4")
    page.go_back()
    expect(names(page)).to_have_count(6)
    expect(page.locator("[name=step_from]")).to_have_value("1")


def test_an_opened_group_draws_what_it_says(look: Look) -> None:
    page = look.at(f"{LIST}/toys-e0-r0?step=0")
    opened = page.locator("h2").first
    for _ in range(3):
        before = opened.inner_text()
        page.keyboard.press("j")
        expect(opened).not_to_have_text(before)
        page.wait_for_load_state()  # another page, whose script hears the next key
    data = json.loads(page.locator("#drawn").get_attribute("data-graphs") or "")
    for key, name in (("1", "difference"), ("2", "completion"), ("3", "reference")):
        page.keyboard.press(key)
        graph, drawing = data["graphs"][name], page.locator("#drawn .drawing")
        expect(drawing.locator(".object rect.line")).to_have_count(len(graph["objects"]))
        for verdict in ("hit", "near", "miss", "hallucination"):
            parts = [part for part in graph["objects"] if part["verdict"].split()[0] == verdict]
            expect(drawing.locator(f".object.{verdict} rect.line")).to_have_count(len(parts))
        colours = drawing.locator(".object rect.line").evaluate_all(
            "rects => rects.map(r => getComputedStyle(r).stroke)"
        )
        assert len(set(colours)) == len({p["verdict"].split()[0] for p in graph["objects"]})
    page.keyboard.press("1")
    page.locator("#drawn .triplets button").first.focus()
    expect(page.locator("#drawn .relation.on")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("h1")).to_have_text("Rollouts")


def test_hostile_answers_run_nothing(look: Look) -> None:
    for number in range(2):
        page = look.at(f"{LIST}/toys-extra?completion={number}")
        expect(page.locator("#drawn .drawing")).to_be_visible()
        expect(page.locator(".answer").first).to_contain_text("<script>alert('x')</script>")
        assert page.title() == "toys-extra, toys · sgg-rl"
        assert page.locator("body script").count() == 0


def test_heldout_shows_the_worst_losses_first(look: Look) -> None:
    page = look.at("/runs/toys/heldout")
    row = page.locator(".scores tr", has_text="Triplet F1")
    expect(row.locator("td")).to_have_text(["5.00", "28.00", "31.00"])
    expect(page.locator("#change-table")).to_be_visible(timeout=60_000)
    expect(page.locator("#order")).to_have_value("loss")
    data = json.loads(page.locator("#browser-data").text_content() or "")
    gains = {
        i["id"]: (i["sides"][1]["f1"] or 0) - (i["sides"][0]["f1"] or 0) for i in data["images"]
    }
    shown = [gains[name] for name in page.locator("#grid b").all_inner_texts()]
    assert shown == sorted(shown)
    assert len(shown) == 8
    page.locator("#grid a").first.click()
    expect(page.locator(".panel h3")).to_have_text(
        ["Reference", "A: toys, before training", "B: toys, version the last"]
    )
    assert (
        page.locator(".panel .drawing image")
        .first.evaluate("i => i.href.baseVal")
        .startswith("/runs/toys/heldout/picture")
    )


def test_a_picture_is_tried_with_and_without_a_reference(
    look: Look, toys: Served, tmp_path: Path
) -> None:
    sample = open_dataset(toys.settings.data.train)[0]
    picture = tmp_path / "it's a photo.png"
    picture.write_bytes(sample.image_bytes)
    page = look.at("/try?run=toys")
    page.set_input_files("#image", picture)
    expect(page.locator("#preview")).to_be_visible()
    page.fill("[name=seed]", "7")
    page.click("button[type=submit]")
    expect(page.locator("#result h2")).to_contain_text("tokens, ended by stop")
    expect(page.locator("#result .drawing image")).to_have_count(1)
    line = page.locator("#result pre.answer").last.inner_text()
    environment = {**os.environ, "SGG_DATA_TOKEN": toys.settings.data_token or "", "no_proxy": "*"}
    asked = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    found = json.loads(asked.stdout)["graphs"][0]
    shown = json.loads(page.locator("details pre.answer").text_content() or "")
    assert shown["objects"] == found["objects"], "the command asks the same"
    reference = {
        "objects": [{"id": o["id"], "bbox": o["bbox"]} for o in found["objects"]],
        "relationships": found["relationships"],
    }
    page.locator("summary", has_text="Reward").click()
    page.fill("textarea", json.dumps(reference))
    page.click("button[type=submit]")
    expect(page.locator("#result h2")).to_contain_text("reward")
    expect(page.locator("#result .terms-table")).to_contain_text("triplet_f1")
    expect(page.locator("#switch [value=difference]")).to_be_checked()
    objects = page.locator("#result .drawing .object.hit rect.line")
    expect(objects).to_have_count(len(found["objects"]))


def spread(record: RolloutRecord) -> float:
    return pstdev(reward.total for reward in record.rewards)


def test_a_copy_opens_from_disk_with_all_that_stood_there(
    browser: Browser,  # noqa: F811
    toys: Served,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "a copy"
    words = ["console", str(toys.settings.run.root), "--export", str(copy), "--groups", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words], capture_output=True, text=True, check=True
    )
    size = sum(file.stat().st_size for file in copy.rglob("*") if file.is_file())
    assert done.stdout.endswith(f"index.html ({size / 1e6:.1f} MB)\n")
    look = Look(browser, f"{copy.as_uri()}/")
    page = look.at("index.html")
    expect(page.locator(".copied")).to_contain_text("A copy of 20")
    page.get_by_role("link", name="toys", exact=True).click()
    page.locator("input[value=time]").check()
    expect(page.locator("figure canvas").first).to_be_visible()
    page.get_by_role("link", name="Rollouts").click()
    steps = [read_rollouts(toys.settings.run.folder, step) for step in (2, 1, 0)]
    widest = [max(step, key=spread).rollout.group_id for step in steps]
    expect(names(page)).to_have_text(widest)
    expect(page.locator("form")).to_have_count(0)
    names(page).nth(1).click()
    expect(page.locator("#drawn .drawing image")).to_have_count(1)
    for key in "jjk":
        page.keyboard.press(key)
        page.wait_for_load_state()
    expect(page.locator("#drawn .drawing .object").first).to_be_attached()
    rows = page.get_by_role("link", name="These answers as rows").evaluate("link => link.href")
    assert Path(unquote(rows.removeprefix("file://"))).read_text().count("\n") == 6
    page.get_by_role("link", name="Held-out").click()
    page.locator("#grid a").first.click()
    expect(page.locator(".panel .drawing image")).to_have_count(3)
    page.get_by_role("link", name="Servers").click()
    expect(page.locator("main")).to_contain_text("Rollout servers")
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("link", name="See them beside each other").click()
    expect(page.locator("figure canvas").first).to_be_visible()
    expect(page.locator("main")).to_contain_text("other has no answers about held-out images")
    look.close()


@pytest.mark.parametrize(
    "path",
    [LIST, f"{LIST}/toys-e0-r0?step=0", f"{LIST}/toys-extra", "/runs/toys/heldout", "/try"],
)
def test_pages_fit_a_phone(browser: Browser, toys: Served, path: str) -> None:  # noqa: F811
    look = Look(browser, toys.url, width=400)
    page = look.at(path)
    page.evaluate("document.querySelectorAll('details').forEach(part => (part.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") == 400, "nothing sticks out"
    wide = ".explained .scroll, .explained p, .chart"
    assert page.locator(wide).evaluate_all(
        "parts => parts.every(part => part.scrollWidth <= part.clientWidth)"
    ), "nothing is cut"
    look.close()
