"""The events of mkdocs (https://www.mkdocs.org/user-guide/configuration/#hooks)."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from docs.hooks import commands, prometheus, rest, settings
from docs.hooks.links import PAGES_BESIDE_DOCS, ROOT, linked_files, place, rewritten
from services.settings.schema import settings_schema

_CODE = re.compile(r"<code>(\w+\.\w+)(?: = [^<]*)?</code>")
_APART = re.compile(r"(<(?:a|pre|h\d)\b.*?</(?:a|pre|h\d)>)", re.S)
"""Where code is no word of a sentence, or leads somewhere already."""
_WORKER = "assets/javascripts/iframe-worker.js"
_SOURCES = {page: source for source, page in PAGES_BESIDE_DOCS.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is generated, and what pages link to outside docs/."""
    generated = _generated()
    for uri, content in generated.items():
        files.append(File.generated(config, uri, content=content))
    for source, page in PAGES_BESIDE_DOCS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    written = [file for file in files.documentation_pages() if file.src_uri not in generated]
    linked = {path for file in written for path in linked_files(file.content_string, _source(file))}
    for path in sorted(linked):
        there = place(path)
        assert there
        files.append(File.generated(config, there, abs_src_path=str(ROOT / path)))
    files.append(
        File.generated(config, _WORKER, abs_src_path=str(ROOT / "docs/hooks/iframe-worker.js"))
    )
    config.nav = whole_nav(config.nav or [], (f.src_uri for f in files.documentation_pages()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links fit the site."""
    if page.file.abs_src_path is None:  # generated for the site
        return markdown
    return rewritten(markdown, _source(page.file), page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Code that is a setting's name leads to the setting."""
    reference = get_relative_url("reference/settings.html", page.url)

    def linked(code: re.Match[str]) -> str:
        return (
            f'<a href="{reference}#{code[1]}">{code[0]}</a>'
            if settings.is_setting(code[1])
            else code[0]
        )

    parts = _APART.split(html)
    return "".join(part if i % 2 else _CODE.sub(linked, part) for i, part in enumerate(parts))


def _generated() -> dict[str, str]:
    """Pages and files of the site that nobody has written."""
    apps = rest.service_apps()
    pages = {
        "reference/commands.md": commands.page(),
        "reference/settings.md": settings.page(),
        "reference/settings.schema.json": json.dumps(settings_schema(), indent=2),
        "reference/rest.md": rest.page(apps),
        "reference/prometheus.md": prometheus.page(apps),
    }
    for name, app in apps.items():
        pages[f"reference/{name}.openapi.json"] = json.dumps(app.openapi(), indent=2)
    return pages


def _source(file: File) -> str:
    return _SOURCES.get(file.src_uri, f"docs/{file.src_uri}")


def whole_nav(nav: list[Any], pages: Iterable[str]) -> list[Any]:
    """The navigation with pages that it does not name under "More", so that a new one is found."""
    named = set(_names(nav))
    more = [page for page in pages if page not in named]
    return [*nav, {"More": more}] if more else nav


def _names(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _names(item)
