"""`sgg-rl status` and `sgg-rl dead`: how a run is, and its dead groups."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.options import AsJson, Config, Overrides, Run
from cli.settings import run_settings, settings_of_run
from cli.views.as_json import print_json
from cli.views.safe_text import safe
from services.errors import NotFoundError, UnavailableError

dead_app = typer.Typer(help="Groups that failed too often.", no_args_is_help=True)


def status(
    run: Run = None,
    config: Config = None,
    set_: Overrides = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """How a run is: step, time left, trainer, services, servers, disk and queues.

    Example: sgg-rl status runs/demo
    """
    from cli.run_state import read_host, read_status, watch_status
    from cli.views.status import host_view, status_view
    from launcher.views.terminal import SafeConsole

    if watch and as_json:
        raise typer.BadParameter("--watch is for people, --json for scripts: give one of them")
    settings = settings_of_run(run, config, set_)
    if watch:
        watch_status(settings)
        return
    try:
        found = read_status(settings)
    except UnavailableError:
        host = read_host(settings)
        print_json(host) if as_json else SafeConsole().print(host_view(host))
        raise
    print_json(found) if as_json else SafeConsole().print(status_view(found))


@dead_app.command("list")
def dead_list(config: Config = None, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Each dead group with its errors.

    Example: sgg-rl dead list --config runs/demo/config.toml
    """
    from cli.run_state import with_queue

    letters = with_queue(run_settings(config, set_), lambda queue: queue.dead_letters())
    if as_json:
        print_json(
            [asdict(letter) | {"body": letter.body.decode(errors="replace")} for letter in letters]
        )
        return
    for letter in letters:
        print(f"{letter.entry_id}  {letter.stream}  {safe(letter.work_id)}")
        for failure in letter.failures:
            print(f"    {safe(failure)}")
    print(f"{len(letters)} dead groups")


@dead_app.command("drop")
def dead_drop(entry_id: str, config: Config = None, set_: Overrides = None) -> None:
    """Forget a dead group.

    Example: sgg-rl dead drop 1700000000000-0 --config runs/demo/config.toml
    """
    from cli.run_state import with_queue

    if not with_queue(run_settings(config, set_), lambda queue: queue.drop(entry_id)):
        raise NotFoundError(f"no dead group {entry_id}: see `sgg-rl dead list`")
    print(f"dropped {entry_id}")
