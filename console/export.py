"""A copy of the console as files, which opens from disk without a server."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import httpx
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import escape

from console.app import create_console
from console.reading.logs import logs
from console.reading.run import RunReader
from console.runs import Run, Runs
from console.web import HERE
from services.errors import SggError, UnavailableError

_LINK = re.compile(r'\b(href|src)="(/[^"]*)"')
_LIVE = re.compile(r' (?:sse-connect|sse-swap|hx-\w+)="[^"]*"')
"""What asks a server for more."""


class Copied(NamedTuple):
    """What is in a copy."""

    num_runs: int
    left_out: dict[str, str]
    """Runs that could not be read, each with the reason."""


async def export(folder: Path, into: Path) -> Copied:
    """Write the runs, each run's page with its curves, its settings and the ends of its logs.

    Args:
        folder: Of runs, or one run's.
        into: Is made; files of an earlier copy are written over.
    """
    copied: list[str] = []
    left_out: dict[str, str] = {}
    transport = httpx.ASGITransport(create_console(folder))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for run in Runs(folder).all():
            try:
                pages = await _pages(client, run)
            except (SggError, OSError) as error:
                left_out[run.name] = str(error)
                continue
            _write(into, pages, [*pages])
            copied.append(run.url)
        _write(into, {"/": await _page(client, "/")}, copied)
    shutil.copytree(HERE / "static", into / "static", dirs_exist_ok=True)
    return Copied(len(copied), left_out)


async def _pages(client: httpx.AsyncClient, run: Run) -> dict[str, str]:
    """A run's pages by their paths; the first one has the points of its curves.

    Raises:
        UnavailableError: A page cannot be made; the message is what it says.
        OSError: A file of the run cannot be read.
    """
    paths = [run.url, f"{run.url}/settings"]
    paths += [f"{run.url}/logs/{log.quoted}" for log in logs(run.files)]
    pages = {path: await _page(client, path) for path in paths}
    reader = RunReader(run)
    reader.update()
    data = f'<script type="application/json" id="curves">{htmlsafe_json_dumps(reader.points())}'
    pages[run.url] = pages[run.url].replace("</main>", f"</main>\n{data}</script>", 1)
    return pages


async def _page(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.get(path)
    if answer.is_error:
        raise UnavailableError(answer.json()["detail"])
    return answer.text


def _write(into: Path, pages: dict[str, str], paths: list[str]) -> None:
    """Write pages; their links lead to those of `paths`, and to the list of runs."""
    for path, page in pages.items():
        file = into / _file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_alone(page, path, ["/", *paths]), encoding="utf-8", errors="replace")


def _file(path: str) -> Path:
    """Where a page lies: `/runs/demo` in `runs/demo/index.html`."""
    return Path(unquote(path).strip("/")) / "index.html"


def _alone(page: str, path: str, paths: list[str]) -> str:
    """A page whose links lead to files beside it; a link to a page that is left out is none."""
    up = "../" * (len(_file(path).parts) - 1)

    def beside(link: re.Match[str]) -> str:
        kind, target = link.groups()
        if target.startswith("/static/"):
            return f'{kind}="{up}{target[1:]}"'
        if target not in paths:
            return "data-left-out"
        return f'{kind}="{up}{escape(target[1:])}{"/" * (target != "/")}index.html"'

    return _LIVE.sub("", _LINK.sub(beside, page)).replace("<body>", '<body class="copy">', 1)
