"""Which file of the project stands where in the site, and links that fit that.

A page of docs/ links to what is beside docs/ too, such as `../SECURITY.md` or Prometheus's rules.
On the site these are pages and files as well; a link to a folder becomes plain text.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PAGES_BESIDE_DOCS = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs.md",
}
"""Page of the project to page of the site; README's place is taken by `docs/index.md`."""
_HOME = {"README.md": "index.md"}
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^)\s#]*)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)
_FILES = "files/"
"""Folder of the site with the project's files that are no pages."""


def place(path: str) -> str | None:
    """Where a file of the project stands in the site; None of a folder, which has no page.

    Example: `"docs/deploy/gpu.md"` is `"deploy/gpu.md"`, `"configs/README.md"` is `"configs.md"`
    """
    if path in (pages := PAGES_BESIDE_DOCS | _HOME):
        return pages[path]
    if (ROOT / path).is_dir():
        return None
    return path.removeprefix("docs/") if path.startswith("docs/") else _FILES + path


def rewritten(text: str, source: str, page: str) -> str:
    """A page's Markdown with links that fit the site.

    Args:
        text: The Markdown.
        source: The file in the project that it is of.
        page: Where that stands in the site.
    """

    def replaced(link: re.Match[str]) -> str:
        label, name, anchor = link[1], link[2], link[3] or ""
        if not name:
            return link[0]
        target = place(_target(source, name))
        if target is None:
            return label
        return f"[{label}]({os.path.relpath(target, PurePosixPath(page).parent)}{anchor})"

    parts = _FENCE.split(text)
    return "".join(part if i % 2 else _LINK.sub(replaced, part) for i, part in enumerate(parts))


def linked_files(text: str, source: str) -> Iterator[str]:
    """Files of the project that a page links to and that are no pages."""
    for link in _LINK.finditer(text):
        target = _target(source, link[2]) if link[2] else source
        if (place(target) or "").startswith(_FILES) and (ROOT / target).is_file():
            yield target


def _target(source: str, name: str) -> str:
    return os.path.normpath(PurePosixPath(source).parent / name)
