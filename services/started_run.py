"""Which run the containers of docker-compose.yml are for, from one `up` to the next.

Compose itself remembers nothing: without its knobs the next `up` would start the default run.
"""

import json
import shlex
import sys
from pathlib import Path

from services.settings import environment_value

KNOBS = ("RUN_NAME", "CONFIG", "ARGS")
"""Of docker-compose.yml: what decides which run it is."""


def check_started_run(file: Path) -> None:
    """Keep what this start was given, and refuse one that leaves out what the last one was given.

    Args:
        file: Of a volume that outlives the containers.

    Raises:
        SystemExit: It would be another run than the last one, and nobody has named it.
    """
    given = {knob: value for knob in KNOBS if (value := environment_value(knob))}
    last: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    left_out = last.keys() - given.keys()
    if "RUN_NAME" in left_out or (left_out and not given):
        words = " ".join(f"{knob}={shlex.quote(value)}" for knob, value in last.items())
        sys.exit(
            f"sgg-rl: the last start in these volumes had {words}, and this one would be another "
            "run: put that into .env, or before `docker compose up -d`, to go on with it; name "
            "another run, or the default one, with RUN_NAME=demo"
        )
    file.write_text(json.dumps(given) + "\n")
