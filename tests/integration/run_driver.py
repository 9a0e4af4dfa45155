"""Runs `run_here` with stand-ins for its parts: FOLDER [--resume] [--patient]."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from launcher import local_run as run
from launcher.processes import Part
from launcher.run_parts import MAX_RESTARTS, RunParts, resumed
from services.errors import SggError
from services.http.probe import http_probe
from services.settings import DataSettings, ModelSettings, RunSettings, Settings
from services.settings.training import TrainerSettings

DUMMY = [sys.executable, str(Path(__file__).with_name("dummy_part.py"))]


def parts(settings: Settings, *_: object) -> RunParts:
    root, folder = str(settings.run.root), settings.run.files
    services = {"reward": settings.reward.url, "rollout": settings.rollout.url}
    broken = (settings.run.root / "broken").exists()
    train = [*DUMMY, "trainer", root]
    grace_s = 300.0 if "--patient" in sys.argv else 0.5
    return RunParts(
        redis=Part(
            name="redis",
            command=[*DUMMY, "broken" if broken else "redis", root],
            ready=(settings.run.root / "redis.pids").exists,
            max_restarts=MAX_RESTARTS,
            grace_s=grace_s,
        ),
        services=[
            Part(
                name=name,
                command=[*DUMMY, name, root, str(urlsplit(url).port)],
                ready=http_probe(f"{url}/readyz"),
                alive=http_probe(f"{url}/healthz"),
                max_restarts=MAX_RESTARTS,
                grace_s=grace_s,
            )
            for name, url in services.items()
        ],
        trainer=Part(
            name="trainer",
            command=train,
            max_restarts=MAX_RESTARTS,
            again=lambda code: resumed(train, folder, code),
            progress=lambda: folder.newest_checkpoint,
            grace_s=grace_s,
        ),
    )


def main() -> None:
    settings = Settings(
        run=RunSettings(name="r", root=Path(sys.argv[1])),
        model=ModelSettings(path="none", box_space="relative_1000"),
        data=DataSettings(train="none"),
        trainer=TrainerSettings(num_steps=1),
    )
    stand_ins = (
        (run, "checked", lambda settings: settings),
        (run, "run_parts", parts),
        (run._Run, "_report", lambda _: None),
    )
    for place, name, stand_in in stand_ins:
        setattr(place, name, stand_in)
    try:
        sys.exit(run.run_here(settings, resume="--resume" in sys.argv))
    except SggError as error:
        sys.exit(f"sgg-rl: {error.message}")


if __name__ == "__main__":
    main()
