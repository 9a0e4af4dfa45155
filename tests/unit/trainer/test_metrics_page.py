"""`docs/metrics.md` names every key of a line of `metrics.jsonl`, and no other."""

import re
from pathlib import Path

import pytest
import torch

from services.settings.training import AlgorithmSettings
from tests.unit.trainer.test_records import group
from trainer.algorithms.losses import policy_loss
from trainer.batches.micro_batches import plan_metrics, plan_step
from trainer.records.files import metrics_line
from trainer.types import Outcome, StepBatch

PAGE = (Path(__file__).parents[3] / "docs/metrics.md").read_text()
MADE_BY_THE_ENGINE = {
    *("loss", "grad_norm", "num_skipped_updates", "clip_fraction_by_iteration"),
    *("learning_rate", "num_skipped", "preparation_s"),
}
MADE_BY_EVALUATION = {"evaluations_skipped", "evaluations_failed"}
MADE_BY_PUBLISHING = {
    *("version_bytes", "version_changed_share", "version_chain", "version_s"),
}


class Clock:
    seconds = {"wait": 1.0, "train": 2.0}  # noqa: RUF012
    total_s = 3.0


def documented() -> set[str]:
    """First cells of the tables of metrics, before SFT's section."""
    rows = re.findall(r"^\| (`[^|]*) \|", PAGE[: PAGE.index("## Supervised")], flags=re.M)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def learned(**algorithm: object) -> set[str]:
    logprobs = torch.full((1, 2), -0.5, requires_grad=True)
    one = torch.ones(1, 2)
    output = policy_loss(
        AlgorithmSettings.model_validate(algorithm),
        logprobs,
        logprobs.detach(),
        torch.ones(1),
        one,
        one,
        entropies=one,
        ref_logprobs=logprobs.detach(),
        removed=one,
    )
    return {*output.stats.sums, *output.stats.maxima}


@pytest.fixture(scope="module")
def written() -> set[str]:
    groups = [group(0, [1.0, 2.0]), group(1, [1.0, 2.0])]
    batch = StepBatch(groups=groups, outcome=Outcome())
    plan = plan_metrics(plan_step(groups, num_ranks=1, max_tokens=64))
    line = metrics_line(batch, plan, 0, 9, Clock())  # type: ignore[arg-type]
    plain = learned()
    corrected = learned(old_logprobs="trainer", correction="truncate", beta=0.1, delta=3.0)
    return {
        *line,
        *plain,
        *corrected,
        *MADE_BY_THE_ENGINE,
        *MADE_BY_EVALUATION,
        *MADE_BY_PUBLISHING,
    }


def test_every_metric_is_explained(written: set[str]) -> None:
    assert written - documented() == set()


def test_what_is_explained_is_written(written: set[str]) -> None:
    assert documented() - written == set()


def test_every_row_says_what_is_healthy_or_leaves_it_open() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `\w+`.*\|$", line)]
    head = PAGE.index("## Supervised")
    assert all(line.count("|") == 5 for line in rows if PAGE.index(line) < head)
