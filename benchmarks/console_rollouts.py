"""What a million groups cost the console's page of rollouts: time of a page, memory of the server.

    python -m benchmarks.console_rollouts            # 10,000 and 1,000,000 groups, in Chromium

Makes a run with the real writer, then repeats the lines of its index under other steps; all of them
point to the same records. Times are the browser's own first paint, and the whole answer's.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import httpx
from playwright.sync_api import Browser, sync_playwright

from benchmarks.console import console
from tests.rollout_runs import write_run

_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
_PAGES = {
    "newest": "",
    "one step": "?step_from=500&step_to=500",
    "a predicate that all have": "?predicate=inside",
    "a predicate that none has": "?predicate=xyzzy",
    "lowest reward": "?sort=lowest",
}
_LOADS = 5


def grow(index: Path, wanted: int) -> None:
    """Repeat the lines of an index under later steps until there are `wanted`."""
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    with index.open("w") as stream:
        for number in range(wanted):
            line = lines[number % len(lines)] | {"step": number // 100, "position": number}
            stream.write(json.dumps(line, separators=(",", ":")) + "\n")


def painted(browser: Browser, url: str) -> float:
    """Milliseconds to the first paint of a fresh load."""
    page = browser.new_page(  # its polls evaluate text, which the page itself forbids
        viewport={"width": 1400, "height": 1000}, bypass_csp=True
    )
    page.goto(url)
    paint = float(page.wait_for_function(_PAINT).json_value())
    page.close()
    return paint


def measure(browser: Browser, num_groups: int) -> str:
    """A row of the table in docs/console.md."""
    with tempfile.TemporaryDirectory() as folder:
        settings = write_run(Path(folder), num_steps=4, num_groups=8)
        grow(settings.run.files.rollouts / "index.rank0.jsonl", num_groups)
        with console(Path(folder) / "runs") as (url, server):
            page = f"{url}/runs/toys/rollouts"
            painted(browser, page)
            before = server.memory_info().rss
            paint = median(painted(browser, page) for _ in range(_LOADS))
            cells = [f"{_seconds(page + query):.2f}" for query in _PAGES.values()]
            after = server.memory_info().rss
    memory = f"{before / 1e6:.0f} | {after / 1e6:.0f}"
    return f"| {num_groups:,} | {paint:.0f} | {' | '.join(cells)} | {memory} |"


def _seconds(url: str) -> float:
    began = time.perf_counter()
    httpx.get(url, timeout=300, trust_env=False).raise_for_status()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="*", default=[10_000, 1_000_000])
    wanted = parser.parse_args()
    pages = " | ".join(f"{name}, s" for name in _PAGES)
    print(
        f"| groups | first paint, ms | {pages} | server's memory after one load, MB | at the end |"
    )
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for num_groups in wanted.groups:
            print(measure(browser, num_groups), flush=True)


if __name__ == "__main__":
    main()
