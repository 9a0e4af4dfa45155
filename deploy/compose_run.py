"""Which run the containers of docker-compose.yml are for, from one `docker compose up` to the next.

Compose remembers no knob. Service `prepare` keeps those of every run in the volume `secrets`, and
writes the settings that every other part reads: `run.toml`. An `up` goes on with the last run; one
that names a run (`RUN_NAME`) goes on with that, or begins it. A knob that is not given is the one
that the run was last started with.
"""

import argparse
import json
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from services.errors import SettingsError, SggError
from services.host.environment import environment_value
from services.settings import dump_settings, load_settings
from services.settings.secrets import ensure_secrets

KNOBS = ("CONFIG", "ARGS", "INPUTS")
"""Variables of docker-compose.yml, beside `RUN_NAME`: what a run is started with."""
_FOLDER = Path("/secrets")
_FIRST_RUN = "demo"
_DEFAULT_CONFIG = "demo-compose"


def resolve_run(folder: Path) -> str:
    """Write `run.toml`, the settings of the run that this start is for, and keep its knobs.

    Args:
        folder: A folder in a volume that outlives the containers.

    Returns:
        A line for the log: which run it is, with which knobs, and how to start another.

    Raises:
        SettingsError: A knob is wrong, or Compose has mounted another folder than the run's
            `INPUTS`. What is kept is as before.
    """
    kept = folder / "runs.json"  # name → knobs; the last started comes last
    runs: dict[str, dict[str, str]] = json.loads(kept.read_text()) if kept.exists() else {}
    name = environment_value("RUN_NAME") or next(reversed(runs), _FIRST_RUN)
    given = {knob: value for knob in KNOBS if (value := environment_value(knob))}
    verb = "goes on with" if name in runs else "begins"
    knobs = runs.pop(name, {}) | given
    if "INPUTS" in knobs.keys() - given.keys():
        raise SettingsError(
            f"run {name} was last started with INPUTS={shlex.quote(knobs['INPUTS'])}, a folder "
            "that this start has not mounted: put that into .env, or before `docker compose up -d`"
        )
    _write(folder / "run.toml", _settings(name, knobs))
    _write(kept, json.dumps({**runs, name: knobs}) + "\n")
    words = " ".join(f"{knob}={shlex.quote(v)}" for knob, v in {"RUN_NAME": name, **knobs}.items())
    return f"{verb} run {name} ({words}); for another one: RUN_NAME=other docker compose up -d"


def main() -> None:
    """Make the secrets, and resolve the run."""
    try:
        ensure_secrets(_FOLDER)
        resolved = resolve_run(_FOLDER)
        for line in (*_console_lines(_FOLDER / "run.toml"), resolved):
            sys.stdout.write(f"sgg-rl: {line}\n")
    except SggError as error:
        sys.stderr.write(f"sgg-rl: {error.message}\n")
        sys.exit(error.exit_code)


def _console_lines(run: Path) -> Iterator[str]:
    if tomllib.loads(run.read_text())["monitor"]["console"]:
        yield (
            f"watch it at http://127.0.0.1:{environment_value('MONITOR_PORT') or 8400}, with the "
            "token that `docker compose exec monitor cat /secrets/data_token` prints"
        )


def _settings(name: str, knobs: dict[str, str]) -> str:
    """A run's settings as TOML: its files, the environment over them, `ARGS` over both."""
    parser = argparse.ArgumentParser(prog="CONFIG and ARGS", allow_abbrev=False, add_help=False)
    parser.add_argument("--config", "-c", action="append", type=Path)
    parser.add_argument("--set", action="append", default=[])
    line = f"--config {knobs.get('CONFIG', _DEFAULT_CONFIG)} {knobs.get('ARGS', '')}"
    try:
        found = parser.parse_args(shlex.split(line))
    except ValueError as error:
        raise SettingsError(f"CONFIG and ARGS are {line!r}: {error}") from error
    return dump_settings(load_settings(found.config, [f'run.name="{name}"', *found.set]))


def _write(file: Path, text: str) -> None:
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(text)
    draft.replace(file)


if __name__ == "__main__":
    main()
