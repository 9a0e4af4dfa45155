"""`sgg-rl init`: a run.toml to begin with."""

from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from cli.settings import OWN_CONFIG
from services.bundled import bundled
from services.errors import ConflictError, SettingsError

Kind = Annotated[str, typer.Argument(metavar="KIND", help="demo, r1-sgg or own-data.")]


def init(kind: Kind = "demo") -> None:
    """Write run.toml, with the settings that matter and what each does.

    The demo, a run of R1-SGG, or one on pictures of your own. The other
    commands read the file where no --config is given.

    Example: sgg-rl init own-data
    """
    kinds = {file.stem: file for file in sorted(bundled("configs/init").glob("*.toml"))}
    if kind not in kinds:
        raise SettingsError(f"init {kind}: there is no such kind: choose {', '.join(kinds)}")
    text = kinds[kind].read_text()
    try:
        with OWN_CONFIG.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ConflictError(
            f"{OWN_CONFIG} is here already, and stays as it is: edit it, or run this in another "
            "folder"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"{Path.cwd()} cannot be written ({error.strerror}): run this in a folder of your own"
        ) from error
    print(f"wrote {OWN_CONFIG}\n")
    head = takewhile(lambda line: line.startswith("#"), text.splitlines())
    print("\n".join(line[2:] for line in head))
