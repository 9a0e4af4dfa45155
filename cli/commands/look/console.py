"""`sgg-rl console`: a run, seen live in a browser."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from services.errors import NotFoundError, SettingsError
from services.printable import counted, printable


def console(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8500,
    export: Annotated[
        Path | None, typer.Option(help="Write a copy that opens from disk here, and end.")
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(min=0, help="With --export: groups of each of eight steps; else 2."),
    ] = None,
) -> None:
    """Runs in a browser, live or finished: curves, answers, servers, settings, logs.

    Example: sgg-rl console runs
    """
    import asyncio

    from console.app import create_console
    from services.http.app import serve
    from services.settings.secrets import read_token
    from services.telemetry import setup_logging

    if groups is not None and export is None:
        raise SettingsError("--groups says what a copy holds: give --export FOLDER beside it")
    if not runs.is_dir():
        raise NotFoundError(
            f"there is no folder {runs}: name the folder of your runs, or make one with "
            "`sgg-rl demo`"
        )
    if export is not None:
        from console.export import export as export_pages

        copied = asyncio.run(export_pages(runs, export, 2 if groups is None else groups))
        size = f"{copied.num_bytes / 1e6:.1f} MB"
        print(f"wrote {counted(copied.num_runs, 'run')} to {export / 'index.html'} ({size})")
        for name, reason in copied.left_out.items():
            print(printable(f"left out {name}: {reason}"), file=sys.stderr)
        return
    setup_logging("console")
    url = f"http://{host}:{port}"
    data, admin = (read_token(f"SGG_{kind}_TOKEN", None) for kind in ("DATA", "ADMIN"))
    serve(create_console(runs, url=url, data_token=data, admin_token=admin), url)
