"""`sgg-rl rehearse`: a recipe's whole chain, small in depth and steps alone."""

import sys
from typing import Annotated

import typer

from cli.options import AsJson, Config, Overrides
from cli.settings import run_settings
from cli.views.as_json import print_json

Minutes = Annotated[
    float, typer.Option(min=1, help="On a CPU: completions are cut to what that allows.")
]
Layers = Annotated[int, typer.Option(min=1, help="Of the text, and of the vision tower.")]


def rehearse(
    config: Config = None,
    set_: Overrides = None,
    minutes: Minutes = 10,
    layers: Layers = 2,
    as_json: AsJson = False,
) -> None:
    """Run a recipe's whole chain at its own shapes, before it costs GPUs.

    Data, SFT step, servers, GRPO steps, publish, checkpoint, kill, resume,
    infer, evaluate, report: with few layers and steps. Says what the full run
    needs, and what of it would be refused.

    Example: sgg-rl rehearse --config r1-sgg/vg150-closed-2b-zero
    """
    settings = run_settings(config, set_)
    from launcher.rehearsal.rehearse import rehearse as run
    from launcher.rehearsal.view import rehearsal_view
    from launcher.views.terminal import SafeConsole, open_console, say_on

    console = SafeConsole(stderr=True) if as_json else open_console()
    found = run(settings, minutes=minutes, layers=layers, say=say_on(console))
    if as_json:
        print_json(found.values())
    else:
        console.print(rehearsal_view(found))
    if not found.has_passed:
        sys.exit(1)
