"""What README, CONTRIBUTING, SECURITY and docs/ name exists: links, anchors, folders and files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/*.md")])
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""The changelog names paths of earlier releases too."""
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s]+)\)")
TOP = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
CODE_PATH = re.compile(rf"(?<![\w/.-])(?:{TOP})(?:/[\w.*-]+)+/?")
MODULE = re.compile(r"python -m (\w+(?:\.\w+)+)")
TARGET = re.compile(r"`make ([a-z][\w-]*)|^make ([a-z][\w-]*)", re.M)
MADE_BY_A_RUN = re.compile(r"(build|runs|data|docs/data)/|.*\bcheckpoints?/step-")
CURL_AFTER_7_68 = re.compile(
    r"--(?:json|fail-with-body|output-dir|remove-on-error|retry-all-errors|url-query|variable)\b"
)
MAX_README_LINES = 120


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings, and the ids that it sets itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


def dead_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def missing_paths(page: Path) -> Iterator[str]:
    for path in CODE_PATH.findall(LINK.sub("", page.read_text())):
        path = path.rstrip(".")
        if not MADE_BY_A_RUN.match(path) and not any(ROOT.glob(path.rstrip("/"))):
            yield path


def missing_commands(page: Path) -> Iterator[str]:
    """Modules that `python -m` would not find, and targets that make does not have."""
    text = page.read_text()
    for module in MODULE.findall(text):
        if not (ROOT / module.replace(".", "/")).with_suffix(".py").exists():
            yield module
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    yield from {"".join(found) for found in TARGET.findall(text)} - targets


def too_new_for_curl(page: Path) -> Iterator[str]:
    """Options that curl 7.68 lacks, which long-lived systems have."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S):
        if "curl " in block:
            yield from CURL_AFTER_7_68.findall(re.sub(r"\bsgg-rl .*", "", block))


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/deploy/slurm.md", "configs/README.md"} <= {
        str(page.relative_to(ROOT)) for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_is_there(page: Path) -> None:
    assert list(missing_paths(page)) == []
    assert list(missing_commands(page)) == []
    assert list(too_new_for_curl(page)) == []


def test_what_is_not_there_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One\n[a](#one) [b](#two) [c](none.md) `trainer/none.py` `trainer/train.py` "
        "`python -m trainer.none` `python -m trainer.train` `make none` `make demo NAME=x`\n"
        "```sh\nsgg-rl status --json\ncurl --json @a.json URL\n```\n"
    )
    assert list(dead_links(page)) == ["#two", "none.md"]
    assert list(missing_paths(page)) == ["trainer/none.py"]
    assert list(missing_commands(page)) == ["trainer.none", "none"]
    assert list(too_new_for_curl(page)) == ["--json"]


def test_readme_is_short_and_leads_to_every_page() -> None:
    linked = {(ROOT / name.partition("#")[0]) for name in LINK.findall(README.read_text())}
    assert {page for page in PAGES if page != README} <= linked
    assert len(README.read_text().splitlines()) < MAX_README_LINES
