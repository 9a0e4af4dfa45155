"""The learning rate of each step: a function of settings alone."""

import math

from services.settings.training import TrainerSettings


def learning_rate(trainer: TrainerSettings, step: int, total: int) -> float:
    """The learning rate of a step: a resume has nothing to restore.

    Args:
        trainer: The run's settings.
        step: From 0.
        total: Steps of the run.
    """
    if step < trainer.warmup_steps:
        return trainer.learning_rate * (step + 1) / trainer.warmup_steps
    left = (total - step) / max(1, total - trainer.warmup_steps)
    shape = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return trainer.learning_rate * shape[trainer.lr_schedule]
