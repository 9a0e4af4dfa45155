"""The trainer's service side in a process that stops itself, as a hung host would.

python -m tests.integration.stopping_trainer CONFIG take|publish|commit
"""

import os
import signal
import sys
from pathlib import Path

import torch

from scene_data.dataset import open_dataset
from services.errors import SggError
from services.settings import load_settings
from tests.alone import Alone, first_start
from trainer.collection.prompts import PromptSource
from trainer.connection import ServiceConnection

STOPS_IN = 1
"""The step."""


def weights(version: int) -> list[tuple[str, torch.Tensor]]:
    return [("w", torch.full((2, 3), float(version)))]


def run(config: Path, before: str) -> None:
    """Take, publish and commit steps for ever."""

    def stop(place: str, step: int) -> None:
        if (place, step) == (before, STOPS_IN):
            os.kill(os.getpid(), signal.SIGSTOP)

    settings = load_settings(config)
    prompts = PromptSource(settings, open_dataset(settings.data.train), [7])
    with ServiceConnection(settings, prompts, first_start(settings), Alone()) as services:
        services.start(weights(0), 0)
        step = 0
        while True:
            stop("take", step)
            batch = services.take(step)
            stop("publish", step)
            services.publish(weights(step + 1), step + 1, batch)
            stop("commit", step)
            services.committed(step + 1)
            step += 1


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), sys.argv[2])
    except SggError as error:
        sys.exit(f"sgg-rl: {error.message}")
