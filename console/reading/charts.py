"""Which numbers a run's page draws together, and what they are called."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from console.reading.curves import Curves
from console.reading.guide import Guide, guides

Kind = Literal["lines", "stacked"]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure."""

    title: str
    keys: tuple[str, ...]
    """Of `metrics.jsonl`; one with a `/` at its end stands for all below it."""
    kind: Kind = "lines"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    """What the vertical axis shows at least."""


_CLIPPED = ("clip_fraction", "clip_low_fraction", "clip_high_fraction")
_LENGTHS = ("completion_length_mean", "completion_length_max")
CHARTS = (
    Chart("Reward", ("reward_mean",)),
    Chart("Loss", ("loss",), unit="nats"),
    Chart("Reward terms", ("reward_terms/",), low=0, high=1),
    Chart("Failed answers", ("failure_rate", "failures/", "truncated_rate"), unit="share", low=0),
    Chart("Answer length", _LENGTHS, unit="tokens", low=0),
    Chart("Groups that teach nothing", ("groups_without_spread", "num_replaced"), low=0),
    Chart("Entropy", ("entropy",), unit="nats", low=0),
    Chart("Sampler and trainer disagree", ("mismatch_kl", "mismatch_k3"), unit="nats"),
    Chart("Gradient norm", ("grad_norm",), low=0),
    Chart("Clipped tokens", _CLIPPED, unit="share", low=0),
    Chart("Ratio to the old policy", ("ratio_mean",)),
    Chart("KL to the reference", ("ref_kl",), unit="nats"),
    Chart("Lag", ("policy_lag_mean", "policy_lag_max"), unit="versions", low=0),
    Chart("Groups lost", ("num_stale", "num_dead", "num_skipped"), low=0),
    Chart("Where a step's time goes", ("phases_s/",), kind="stacked", unit="s", low=0),
    Chart("Idle", ("trainer_idle_fraction", "sampler_idle_fraction"), unit="share", low=0, high=1),
    Chart("Speed", ("tokens_per_s",), unit="tokens/s", low=0),
    Chart("Learning rate", ("learning_rate",), low=0),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart that a run has numbers for."""

    chart: Chart
    number: int
    """Its place in `CHARTS`."""
    keys: list[str]
    guides: list[Guide]
    """What the documentation says of them."""

    @property
    def band(self) -> Guide | None:
        """The guide whose healthy range is drawn: the first key's."""
        bounded = (g for g in self.guides[:1] if g.low is not None or g.high is not None)
        return next(bounded, None)


def figures(curves: Curves) -> list[Figure]:
    """The charts of a run, without those that it has no numbers for."""
    found = []
    for number, chart in enumerate(CHARTS):
        keys = [key for wanted in chart.keys for key in _meant(wanted, curves.keys)]
        if chart.title == "Loss" and "reward_mean" in curves.keys:
            continue  # GRPO's is no measure of progress
        if keys and any(value is not None for key in keys for value in curves.mean(key)):
            named = dict.fromkeys(key.split("/")[0] for key in keys)
            found.append(Figure(chart, number, keys, [guides()[n] for n in named if n in guides()]))
    return found


def _meant(wanted: str, keys: list[str]) -> Iterator[str]:
    if wanted.endswith("/"):
        yield from (key for key in keys if key.startswith(wanted))
    elif wanted in keys:
        yield wanted
