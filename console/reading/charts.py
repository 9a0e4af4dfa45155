"""Which numbers a run's page draws together, and what they are called."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from console.reading.guide import Guide, guides

Kind = Literal["lines", "stacked"]
Source = Literal["steps", "evaluations"]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure."""

    title: str
    keys: tuple[str, ...]
    """Numbers of the file's rows; one with a `/` at its end stands for all below it."""
    kind: Kind = "lines"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    """What the vertical axis shows at least."""
    source: Source = "steps"


_CLIPPED = (
    *("clip_fraction", "clip_low_fraction", "clip_high_fraction", "clip_delta_fraction"),
    "clip_fraction_by_iteration/",
)
_HELDOUT = ("triplet_f1", "triplet_recall", "object_f1", "mean_predicate_recall")
_LENGTHS = ("completion_length_mean", "completion_length_max")
CHARTS = (
    Chart("Reward", ("reward_mean",)),
    Chart("Held-out images", _HELDOUT, low=0, source="evaluations"),
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
    Chart("Weights changed by a step", ("version_changed_share",), unit="share", low=0),
    Chart("Groups lost", ("num_stale", "num_dead", "num_skipped"), low=0),
    Chart("Where a step's time goes", ("phases_s/",), kind="stacked", unit="s", low=0),
    Chart("Where a version's time goes", ("version_s/",), kind="stacked", unit="s", low=0),
    Chart("Idle", ("trainer_idle_fraction", "sampler_idle_fraction"), unit="share", low=0, high=1),
    Chart("Speed", ("tokens_per_s",), unit="tokens/s", low=0),
    Chart("Learning rate", ("learning_rate",), low=0),
)
"""Those of a run, in the order of its page"""

COMPARED = (
    Chart("Reward", ("reward_mean",)),
    Chart("Held-out triplet F1", ("triplet_f1",), source="evaluations"),
    Chart("Held-out object F1", ("object_f1",), source="evaluations"),
    Chart("Failed answers", ("failure_rate",), unit="share"),
    Chart("Answer length", ("completion_length_mean",), unit="tokens"),
    Chart("Entropy", ("entropy",), unit="nats"),
    Chart("Lag", ("policy_lag_mean",), unit="versions"),
    Chart("Speed", ("tokens_per_s",), unit="tokens/s"),
)
"""What runs are compared by, a number each"""


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


def figures(steps: Collection[str], evaluations: Collection[str]) -> list[Figure]:
    """The charts of a run, without those that it has no numbers for.

    Args:
        steps: Keys of the numbers in `metrics.jsonl`.
        evaluations: Those in `evaluations.jsonl`.
    """
    # GRPO has a loss too, which is no measure of progress.
    steps = [key for key in steps if key != "loss" or "reward_mean" not in steps]
    sources: dict[Source, Collection[str]] = {"steps": steps, "evaluations": evaluations}
    found = []
    for number, chart in enumerate(CHARTS):
        keys = [key for wanted in chart.keys for key in _meant(wanted, sources[chart.source])]
        if keys:
            named = dict.fromkeys(key.split("/")[0] for key in keys)
            known = [guides()[name] for name in named if name in guides()]
            found.append(Figure(chart, number, keys, known))
    return found


def drawn_keys(shown: list[Figure]) -> dict[Source, dict[str, bool]]:
    """The numbers that figures need of each file; True where a figure is of that number alone."""
    found: dict[Source, dict[str, bool]] = {
        source: {"step": False, "time": False} for source in ("steps", "evaluations")
    }
    for figure in shown:
        for key in figure.keys:
            found[figure.chart.source] |= {key: len(figure.keys) == 1}
            if figure.chart.source == "evaluations":
                ends = (f"intervals/{key}/{end}" for end in ("low", "high"))
                found["evaluations"] |= dict.fromkeys(ends, False)
    return found


def _meant(wanted: str, keys: Collection[str]) -> Iterator[str]:
    if wanted.endswith("/"):
        yield from (key for key in keys if key.startswith(wanted))
    elif wanted in keys:
        yield wanted
