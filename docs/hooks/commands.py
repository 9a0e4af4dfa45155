"""The page of commands, by what `--help` says of each."""

from collections.abc import Iterator

import typer
from typer.cli import get_docs_for_click
from typer.core import TyperCommand, TyperGroup

from cli.main import app
from docs.hooks.fields import prose

_START = """# Commands

```
sgg-rl status --help
```

prints what this page says of `sgg-rl status`. A command ends with 0 when it is done, 1 when it
failed, 2 for wrong options or settings, 3 when another start has taken over the run, 75 when it
was stopped with its steps in a checkpoint, and 130 after Ctrl-C. Two options are the same
everywhere: `--config` names the run's TOML file, and `--set section.field=value` lies over it.

| command | what it does |
|---|---|
"""


def page() -> str:
    """The Markdown: a table of all, then each with its arguments and options."""
    found = list(_commands(typer.main.get_command(app), "sgg-rl"))
    rows = (f"| [`{name}`](#{name.replace(' ', '-')}) | {_first(one)} |" for name, one in found)
    return _START + "\n".join(rows) + "\n\n" + "\n".join(_described(*item) for item in found)


def commands() -> dict[str, TyperCommand]:
    """Every command by its whole name, such as `sgg-rl data convert`."""
    return dict(_commands(typer.main.get_command(app), "sgg-rl"))


def _commands(command: object, name: str) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for part, inner in command.commands.items():
            yield from _commands(inner, f"{name} {part}")
    elif isinstance(command, TyperCommand) and not command.hidden:
        yield name, command


def _first(command: TyperCommand) -> str:
    return prose((command.help or "").split("\n\n")[0])


def _described(name: str, command: TyperCommand) -> str:
    context = typer.Context(command, info_name=name)
    text = get_docs_for_click(obj=command, ctx=context, name=name, indent=1)
    return "\n".join(map(_line, text.split("\n")))


def _line(text: str) -> str:
    """Help is no Markdown: what looks like a tag is text. Usage stands in a code block."""
    return text if not text.strip() or text.startswith("$") else prose(text)
