"""Whether a learner walks into the holes that an attack finds: GRPO over the attack's edits.

python -m benchmarks.reward_hole r1-soft balanced --output docs/reward-hole.png

The policy is no vision-language model. It gets an honest imperfect answer, as the attack does, and
chooses up to three edits of it or stops; it has 36 numbers for each place, and at first stops with
0.9. Groups, advantages and rewards are those of training.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cli.commands.prepare.reward import _toy_scenes
from reward_service.attack.edits import EDITS, apply_policy
from reward_service.attack.prior import learn_prior
from reward_service.attack.search import Ground
from reward_service.scoring import make_scorer
from scene_graph.graph import SceneGraph
from trainer.algorithms.advantages import group_relative

SEEDS = (0, 1, 2)
NUM_STEPS, GROUP_SIZE, LEARNING_RATE = 200, 8, 0.1
PLACES, STOPS_AT_FIRST = 3, 0.9
NAMES = ("stop", *EDITS)
PANELS = ("reward, share of the highest", "triplets an answer", "triplet F1")
EMPTY = SceneGraph(objects=(), relationships=())
COLOURS = ("#c44e52", "#4c72b0", "#55a868", "#8172b2")


class Answers(NamedTuple):
    """What all groups earned and wrote, in the order of `PANELS`."""

    reward: np.ndarray
    """[B, G]"""
    triplets: np.ndarray
    f1: np.ndarray


class Learner:
    """The policy, with Adam's state."""

    def __init__(self, seed: int) -> None:
        """Stop nearly always, and prefer no edit."""
        self._rng = torch.Generator().manual_seed(seed)
        self.logits = torch.zeros(PLACES, len(NAMES))
        self.logits[:, 0] = math.log(len(EDITS) * STOPS_AT_FIRST / (1 - STOPS_AT_FIRST))
        self.logits.requires_grad_()
        self._adam = torch.optim.Adam([self.logits], lr=LEARNING_RATE)

    def choices(self, count: int) -> torch.Tensor:
        """[count, PLACES] indices of `NAMES`; what stands behind a stop is not done."""
        chance = self.logits.detach().softmax(1)
        return torch.multinomial(chance, count, replacement=True, generator=self._rng).T

    def update(self, choices: torch.Tensor, advantages: torch.Tensor) -> None:
        """GRPO's gradient where the policy is the one that sampled: all ratios are 1."""
        log_chance = self.logits.log_softmax(1)[torch.arange(PLACES), choices]
        stopped = (choices == 0).int().cumsum(1) - (choices == 0).int() > 0
        loss = -(advantages * (log_chance * ~stopped).sum(1)).mean()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()


def edits_of(choice: Sequence[int]) -> tuple[str, ...]:
    """Names up to the first stop."""
    end = choice.index(0) if 0 in choice else len(choice)
    return tuple(NAMES[index] for index in choice[:end])


class Answering:
    """Scenes with honest answers; an answer that was edited alike before is not scored again."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.size = len(ground.answers)
        self._known: dict[tuple[int, tuple[str, ...]], tuple[float, float, float]] = {}

    def __call__(self, choices: torch.Tensor) -> Answers:
        """A group about each scene."""
        rows = choices.reshape(self.size, GROUP_SIZE, PLACES).tolist()
        keys = [[(i, edits_of(one)) for one in group] for i, group in enumerate(rows)]
        for column in zip(*keys, strict=True):
            self._score(column)
        found = [[self._known[key] for key in group] for group in keys]
        return Answers(*np.moveaxis(np.array(found), 2, 0))

    def _score(self, keys: Sequence[tuple[int, tuple[str, ...]]]) -> None:
        """One answer a scene, empty where nothing is to be found out."""
        if self._known.keys() >= set(keys):
            return
        honest, prior = self._ground.answers, self._ground.prior
        answers = [
            EMPTY if key in self._known else apply_policy(key[1], honest[key[0]], prior)
            for key in keys
        ]
        outcome = self._ground.court.judge(answers)
        for i, key in enumerate(keys):
            if key not in self._known:
                written = float(len(answers[i].relationships))
                self._known[key] = float(outcome.totals[i]), written, float(outcome.f1[i])


def learn(rubric: str, seed: int) -> np.ndarray:
    """[NUM_STEPS, 3] means of each step, in the order of `PANELS`; prints where it ended."""
    scenes = _toy_scenes(seed)
    third = len(scenes) // 3
    scorer = make_scorer(rubric)
    prior = learn_prior((scene.graph for scene in scenes[:third]), scorer.similarity)
    grounds = [Ground(scorer, some, prior, seed) for some in (scenes[:third], scenes[third:])]
    seen, unseen = (Answering(ground) for ground in grounds)
    learner, steps = Learner(seed), []
    for _ in range(NUM_STEPS):
        choices = learner.choices(seen.size * GROUP_SIZE)
        found = seen(choices)
        learner.update(choices, group_relative(torch.tensor(found.reward), "group").flatten())
        steps.append([values.mean() for values in found])
    after = unseen(learner.choices(unseen.size * GROUP_SIZE))
    likeliest = edits_of(learner.logits.argmax(1).tolist())
    before = unseen(torch.zeros(unseen.size * GROUP_SIZE, PLACES, dtype=torch.int64))
    changes = (f"{a.mean():.3f} → {b.mean():.3f}" for a, b in zip(before, after, strict=True))
    print(f"| `{rubric}` | {seed} | {' | '.join(changes)} | {', '.join(likeliest) or 'none'} |")
    return np.array(steps)


def plot(
    curves: dict[str, list[np.ndarray]], panels: Sequence[str], output: Path, *, scale: str
) -> None:
    """A line a seed, [steps, 3] values in the order of `panels`; `scale` is the second one's."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6), layout="constrained")
    for colour, (rubric, runs) in zip(COLOURS, curves.items(), strict=False):
        for number, run in enumerate(runs):
            for axis, values in zip(axes, run.T, strict=True):
                axis.plot(values, color=colour, lw=1.1, label=None if number else rubric)
    for axis, title in zip(axes, panels, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_yscale(scale)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(output, dpi=80, pil_kwargs={"optimize": True})


def main() -> None:
    """A table on standard output, and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rubrics", nargs="+")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    print(f"| rubric | seed | {' | '.join(PANELS)} | likeliest edits |")
    print("|---|--:|--:|--:|--:|---|")
    curves = {rubric: [learn(rubric, seed) for seed in SEEDS] for rubric in arguments.rubrics}
    if arguments.output:
        plot(curves, PANELS, arguments.output, scale="log")


if __name__ == "__main__":
    main()
