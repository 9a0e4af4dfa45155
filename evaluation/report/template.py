"""Pages that are one file each: templates, style and scripts of `parts/` put together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

PARTS = Path(__file__).parent / "parts"
"""Templates, styles and scripts; the console serves some of them too."""
BROWSER = ("drawing.js", "panels.js", "browser.js")
"""Scripts of the browser of images."""
_STYLES = ("report.css", "drawing.css", "browser.css")


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """A page that opens from disk, without a network.

    Args:
        template: Its file.
        scripts: Files that become one module, in this order.
        values: What the template names, beside `style` and `scripts`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = Markup("\n").join(map(_part, _STYLES))
    parts = {"style": style, "scripts": [_part(name) for name in scripts]}
    return environment.get_template(template).render(**parts, **values)


def _part(name: str) -> Markup:
    """A file of ours, which goes into the page as it is."""
    return Markup((PARTS / name).read_text(encoding="utf-8"))  # noqa: S704 - no text of others
