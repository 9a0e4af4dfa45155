"""What a long run costs the console: first paint, first curves, memory of the server.

    python benchmarks/console.py            # 1,000 and 10,000 steps, in Chromium

Makes each run in a temporary folder, serves it as `sgg-rl console` does, opens its page, and adds
steps while somebody looks. Times are the browser's own, medians of five fresh loads.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
from playwright.sync_api import Browser, sync_playwright

from services.host.ports import free_port
from services.http.probe import http_probe
from services.run_folder import RunFolder
from tests.console_runs import make_run, step_row

_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
_LOADS = 5
_HEAD = (
    "| steps | file, MB | first paint, ms | curves of the first load, ms | of later ones, ms "
    "| server's memory before, MB | after six loads | after a tenth more steps |"
)


@contextmanager
def console(runs: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`sgg-rl console` on a free port: its address and its process."""
    port = free_port()
    words = [sys.executable, "-m", "cli.main", "console", str(runs), "--port", str(port)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not http_probe(f"{url}/healthz")():
            time.sleep(0.1)
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def load(browser: Browser, url: str) -> tuple[float, float]:
    """Milliseconds to the first paint and to the last figure's curves."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.goto(url)
    page.locator("figure canvas").nth(page.locator("figure").count() - 1).wait_for()
    drawn: float = page.evaluate("performance.now()")
    painted: float = page.evaluate(_PAINT)
    context.close()
    return painted, drawn


def measure(browser: Browser, steps: int) -> str:
    """A row of the table in docs/console.md."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_run(Path(folder) / "run", steps=steps, total=2 * steps)
        size = files.metrics.stat().st_size / 1e6
        with console(Path(folder)) as (url, server):
            before = server.memory_info().rss
            _, first_drawn = load(browser, f"{url}/runs/run")
            loads = [load(browser, f"{url}/runs/run") for _ in range(_LOADS)]
            after = server.memory_info().rss
            watch(browser, f"{url}/runs/run", files, steps)
            later = server.memory_info().rss
    paint, drawn = (median(times) for times in zip(*loads, strict=True))
    memory = " | ".join(f"{bytes_ / 1e6:.0f}" for bytes_ in (before, after, later))
    times = f"{paint:.0f} | {first_drawn:.0f} | {drawn:.0f}"
    return f"| {steps:,} | {size:.1f} | {times} | {memory} |"


def watch(browser: Browser, url: str, files: RunFolder, steps: int) -> None:
    """Add a tenth of the steps, and wait until a page that is open shows the last."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    rng, last = random.Random(0), steps + steps // 10
    with files.metrics.open("a") as stream:
        for step in range(steps, last):
            stream.write(json.dumps(step_row(step, 2 * steps, time.time(), rng)) + "\n")
    page.locator("h1", has_text=f"step {last:,} of").wait_for()
    context.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="*", default=[1_000, 10_000])
    wanted = parser.parse_args()
    print(_HEAD)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for steps in wanted.steps:
            print(measure(browser, steps), flush=True)


if __name__ == "__main__":
    main()
