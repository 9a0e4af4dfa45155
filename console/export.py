"""A copy of the console as files, which opens from disk without a server."""

import hashlib
import re
import time
from html import escape, unescape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

import httpx

from console.app import create_console
from console.pages.report_files import NAMES as REPORT_FILES
from console.reading.logs import logs
from console.runs import Run, Runs, compare_address
from console.web import HERE, TABS, CopyRule
from evaluation.report.template import PARTS
from services.errors import SggError, UnavailableError

_LINK = re.compile(r'\b(href|src)="(/[^"]*)"')
_LIVE = re.compile(r' (?:sse-[a-z]+|hx-[a-z-]+)="[^"]*"')
"""What asks a server for more."""
_GROUP = re.compile(r'href="((/runs/[^"/]+/rollouts/[^"/]+\?step=\d+)(?:&amp;completion=(\d+))?)"')
_FILE = re.compile(
    r"/runs/[\w.%~-]+/(?:images/[0-9a-f]{64}\?row=\d+|heldout/picture\?image=[\w.%+~-]*"
    r'|rollouts/[\w.%~-]+/rows\.jsonl\?step=\d+)(?=["&])'
)
"""Addresses of pictures and rows, in links and in JSON, where a quotation mark ends them."""


class Copied(NamedTuple):
    """What is in a copy."""

    num_runs: int
    left_out: dict[str, str]
    """Runs that could not be read, each with the reason."""
    num_bytes: int


async def export(folder: Path, into: Path, groups_of_a_step: int = 2) -> Copied:
    """Write the pages of all runs: curves, some groups, held-out images, servers, settings, logs.

    Args:
        folder: Of runs, or one run's.
        into: Is made; files of an earlier copy are written over.
        groups_of_a_step: The most groups of a step that are copied, with their pages.
    """
    rule = CopyRule(groups_of_a_step, time.strftime("%Y-%m-%d %H:%M %Z"))
    app, left_out, runs = create_console(folder, copied=rule), dict[str, str](), list[Run]()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        copy = _Copy(client, into)
        for run in Runs(folder).all():
            try:
                await copy.write_run(run)
            except (SggError, OSError) as error:
                left_out[run.name] = str(error)
                continue
            runs.append(run)
        await copy.write_overview(runs)
    copy.write_static()
    return Copied(len(runs), left_out, copy.num_bytes)


class _Copy:
    """Pages, each with its pictures, on their way to disk.

    Args:
        client: Asks the console.
        into: The copy's folder.
    """

    def __init__(self, client: httpx.AsyncClient, into: Path) -> None:
        self._client = client
        self._into = into
        self._files: dict[str, Path | None] = {}
        """What `_FILE` finds, by address; None for a picture that is gone"""
        self.num_bytes = 0

    async def write_run(self, run: Run) -> None:
        """Write all of a run; another page than its first one may say that it cannot be made.

        Raises:
            UnavailableError: The first page cannot be made; the message is what it says.
            OSError: A file of the run cannot be read.
        """
        addresses = [f"{run.url}{rest}" for rest in TABS.values()]
        addresses += [f"{run.url}/logs/{log.quoted}" for log in logs(run.files)]
        pages = {a: await self._page(a, is_needed=a == run.url) for a in addresses}
        files = {address: _folder(address) / "index.html" for address in addresses}
        files |= _group_files(run, pages[f"{run.url}{TABS['Rollouts']}"])
        for file, address in {file: address for address, file in files.items()}.items():
            text = pages.pop(address, None) or await self._page(address)
            await self._write(text, file, files)

    async def write_overview(self, runs: list[Run]) -> None:
        """Write the list of runs, and those that are copied beside each other."""
        files = {run.url: _folder(run.url) / "index.html" for run in runs}
        overview = await self._page("/")
        if len(runs) > 1:
            address, file = compare_address(runs), Path("compare/index.html")
            await self._write(await self._page(address), file, files)
            linked = next((unescape(a) for _, a in _LINK.findall(overview) if "/compare?" in a), "")
            files[linked] = file  # it may name runs that are left out
        await self._write(overview, Path("index.html"), files)

    def write_static(self) -> None:
        """Write scripts and styles."""
        for file in (f for f in (HERE / "static").rglob("*") if f.is_file()):
            self._keep(file.relative_to(HERE), file.read_bytes())
        for name in REPORT_FILES:
            self._keep(Path("static/report") / name, (PARTS / name).read_bytes())

    async def _page(self, address: str, *, is_needed: bool = False) -> str:
        headers = {} if is_needed else {"Accept": "text/html"}
        answer = await self._client.get(address, headers=headers)
        if is_needed and answer.is_error:
            raise UnavailableError(answer.json()["detail"])
        return answer.text

    async def _write(self, text: str, file: Path, files: dict[str, Path]) -> None:
        """Write a page; its links lead to those of `files`, a link to another one is none."""
        up = "../" * (len(file.parts) - 1)
        for address in dict.fromkeys(_FILE.findall(text)):
            await self._file(address)

        def beside(link: re.Match[str]) -> str:
            kind, address = link[1], unescape(link[2])
            if address.startswith("/static/"):
                return f'{kind}="{up}{address[1:]}"'
            target = Path("index.html") if address == "/" else files.get(address)
            if target is None:
                return "data-left-out"
            return f'{kind}="{up}{escape(quote(str(target)))}"'

        def own(found: re.Match[str]) -> str:
            target = self._files[found[0]]
            return f"{up}{target}" if target else ""

        text = _LINK.sub(beside, _FILE.sub(own, text))
        self._keep(file, _LIVE.sub("", text).encode("utf-8", errors="replace"))

    async def _file(self, address: str) -> None:
        """Write a picture or rows once, whatever number of runs and pages have the same."""
        if address in self._files:
            return
        answer = await self._client.get(address)
        self._files[address] = None
        if not answer.is_error:
            name = hashlib.sha256(answer.content).hexdigest()[:32]
            suffix = ".jsonl" if "/rows.jsonl?" in address else ".jpg"
            file = Path("files", name + suffix)
            if file not in self._files.values():
                self._keep(file, answer.content)
            self._files[address] = file

    def _keep(self, file: Path, content: bytes) -> None:
        (self._into / file).parent.mkdir(parents=True, exist_ok=True)
        (self._into / file).write_bytes(content)
        self.num_bytes += len(content)


def _folder(address: str) -> Path:
    """Where a page lies: `/runs/demo` in `runs/demo`."""
    return Path(unquote(address).strip("/"))


def _group_files(run: Run, listed: str) -> dict[str, Path]:
    """The files of the groups, and of their completions, that the page of rollouts leads to."""
    files: dict[str, Path] = {}
    numbers: dict[str, int] = {}
    for address, group, completion in _GROUP.findall(listed):
        number = numbers.setdefault(group, len(numbers))
        file = _folder(run.url) / "rollouts" / str(number) / f"{completion or 'index'}.html"
        files[unescape(address)] = file
        if completion and files[group].stem == "index":  # a group's page is that of its best one
            files[group] = file
    return files
