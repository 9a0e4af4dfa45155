"""Runs `run_demo` with stand-ins for its parts: FOLDER [--resume] [--patient]."""

import sys
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from launcher import demo
from launcher.folder import RunFolder
from launcher.processes import Part, Supervisor, http_probe
from services.errors import SggError
from services.settings import DataSettings, ModelSettings, RunSettings, Settings
from services.trainer_settings import TrainerSettings

DUMMY = [sys.executable, str(Path(__file__).with_name("dummy_part.py"))]


def parts(settings: Settings, folder: RunFolder, *, resume: bool) -> list[Part]:
    root = str(settings.run.root)
    services = {"reward": settings.reward.url, "rollout": settings.rollout.url}
    broken = (settings.run.root / "broken").exists()
    return [
        Part(
            name="redis",
            command=[*DUMMY, "broken" if broken else "redis", root],
            ready=(settings.run.root / "redis.pids").exists,
        ),
        *(
            Part(
                name=name,
                command=[*DUMMY, name, root, str(urlsplit(url).port)],
                ready=http_probe(f"{url}/readyz"),
                alive=http_probe(f"{url}/healthz"),
                max_restarts=demo.MAX_RESTARTS,
            )
            for name, url in services.items()
        ),
        Part(name="trainer", command=[*DUMMY, "trainer", root]),
    ]


def main() -> None:
    settings = Settings(
        run=RunSettings(name="r", root=Path(sys.argv[1])),
        model=ModelSettings(path="none"),
        data=DataSettings(train="none"),
        trainer=TrainerSettings(num_steps=1),
    )
    grace_s = 300.0 if "--patient" in sys.argv else 0.5
    demo.run_parts = parts
    setattr(demo, "Supervisor", partial(Supervisor, grace_s=grace_s))  # noqa: B010 - not a class
    demo._evaluate = lambda *_: None
    demo._report = lambda *_: None
    try:
        sys.exit(demo.run_demo(settings, resume="--resume" in sys.argv))
    except SggError as error:
        sys.exit(f"sgg-rl: {error.message}")


if __name__ == "__main__":
    main()
