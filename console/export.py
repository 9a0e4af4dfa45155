"""A copy of the console as files, which opens from disk without a server."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import escape

from console.app import create_console
from console.reading.logs import logs
from console.reading.run import RunReader
from console.runs import Run, Runs
from console.web import HERE

_LINK = re.compile(r'\b(href|src)="(/[^"]*)"')
_LIVE = re.compile(r' (?:sse-connect|sse-swap|hx-\w+)="[^"]*"')
"""What asks a server for more."""


async def export(folder: Path, into: Path) -> int:
    """Write the runs, each run's page with its curves, its settings and the ends of its logs.

    Args:
        folder: Of runs, or one run's.
        into: Is made; files of an earlier copy are written over.

    Returns:
        Number of runs.
    """
    runs = Runs(folder).all()
    paths = ["/", *(path for run in runs for path in _paths(run))]
    transport = httpx.ASGITransport(create_console(folder))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for path in paths:
            page = (await client.get(path)).raise_for_status().text
            file = into / _file(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_alone(page, path, paths), encoding="utf-8", errors="replace")
    for run in runs:
        reader = RunReader(run)
        reader.update()
        file = into / _file(run.url)
        data = f'<script type="application/json" id="curves">{htmlsafe_json_dumps(reader.points())}'
        page = file.read_text(encoding="utf-8").replace("</main>", f"</main>\n{data}</script>", 1)
        file.write_text(page, encoding="utf-8")
    shutil.copytree(HERE / "static", into / "static", dirs_exist_ok=True)
    return len(runs)


def _paths(run: Run) -> Iterator[str]:
    yield run.url
    yield f"{run.url}/settings"
    yield from (f"{run.url}/logs/{log.quoted}" for log in logs(run.files))


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
