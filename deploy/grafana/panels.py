"""What the dashboards show: titles, units, and PromQL by legend. `build.py` makes the JSON.

`$run` is the chosen run. `docs/metrics.md` explains every number of a step, and
`docs/operations.md` what to do.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Series = dict[str, str]
"""PromQL to legend, in which `{{label}}` is a label's value."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Example: `Panel("Loss", _last(sgg_trainer_loss="loss"))`
    """

    title: str
    series: Series
    about: str = ""
    """Shown where one points at the panel."""
    unit: str = "short"
    """Grafana's: `s`, `bytes`, `percentunit` …"""
    type: Literal["timeseries", "stat", "table"] = "timeseries"
    stacked: bool = False
    red_from: float | None = None
    """A value from which on it is red."""
    red_below: float | None = None


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    """Part of its address; the file's name too."""
    title: str
    panels: list[Panel]


def _last(**legends: str) -> Series:
    """The run's last value of metrics, with the legend of each."""
    return {f'{metric}{{run="$run"}}': legend for metric, legend in legends.items()}


def _named(prefix: str, *keys: str) -> Series:
    return _last(**{f"{prefix}_{key}": key for key in keys})


_of_step = partial(_named, "sgg_trainer")
"""Numbers of the last step, as `metrics.jsonl` names them."""
_stat = partial(Panel, type="stat")
_seconds = partial(Panel, unit="s")
_shares = partial(Panel, unit="percentunit")


def _quantiles(histogram: str, by: str = "", only: str = "") -> Series:
    """Median and 95th percentile of a histogram of the run's services."""
    place = f'{{run="$run"{only}}}[$__rate_interval]'
    groups, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = f"sum by ({groups}) (rate({histogram}_bucket{place}))"
    return {f"histogram_quantile({q}, {rates})": f"p{q * 100:g}{legend}" for q in (0.5, 0.95)}


def _rate(counter: str, by: str, only: str = "") -> Series:
    place = f'{{run="$run"{only}}}[$__rate_interval]'
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {f"sum by ({by}) (rate({counter}{place}))": legend}


_STEP_AGE = 'time() - sgg_trainer_last_timestamp_seconds{run="$run"}'
_ABLE = 'sum(sgg_rollout_servers{run="$run",state=~"ready|updating"})'
_REWARD = Panel(
    "Reward",
    _of_step("reward_mean", "reward_min", "reward_max"),
    about="Total reward over all completions of a step, in the rubric's scale.",
)
_TERMS = Panel(
    "Terms of the reward",
    _last(sgg_trainer_reward_terms="{{term}}"),
    about="One that rises while the others fall is being gamed.",
)
_PHASES = _seconds(
    "Where a step's time goes", _last(sgg_trainer_phases_seconds="{{phase}}"), stacked=True
)
_LAG = Panel(
    "Policy lag of what is trained on",
    _of_step("policy_lag_mean", "policy_lag_max") | _last(sgg_max_token_lag="limit"),  # noqa: S106 - a number
    about="Versions between the trainer and what sampled its tokens: their mean, and the oldest.",
)
_OUTCOMES = Panel("What becomes of groups, a second", _rate("sgg_trainer_groups_total", "outcome"))

_RUN = [
    _stat("Step", _of_step("step", "num_steps")),
    _stat(
        "Since the last step",
        {_STEP_AGE: ""},
        unit="s",
        about="Compare with the usual time between steps, on the trainer's page.",
    ),
    _stat("Mean reward", _of_step("reward_mean")),
    _stat("Rollout servers at work", {_ABLE: ""}, red_below=1),
    _stat("Redis", _last(sgg_redis_up="up"), red_below=1),
    _stat("Dead letters", {'sum(sgg_dead_letters{run="$run"})': ""}, red_from=1),
    Panel(
        "Alerts",
        {'ALERTS{run="$run",alertstate="firing"}': ""},
        about="docs/operations.md says what to do about each.",
        type="table",
    ),
    _REWARD,
    _TERMS,
    Panel(
        "Held-out images, strict",
        _named("sgg_evaluation", "triplet_f1", "triplet_recall", "object_f1"),
        about="Only with evaluation.every; of one kind only where the task is cls or det.",
    ),
    _shares("Answers that are not as they should be", _of_step("failure_rate", "truncated_rate")),
    Panel(
        "Tokens a second",
        _of_step("tokens_per_second")
        | {'sum(sgg_rollout_server_tokens_per_second{run="$run"})': "sampled by all servers"},
    ),
    _PHASES,
    _shares(
        "Idle",
        _of_step("trainer_idle_fraction", "sampler_idle_fraction"),
        about="A trainer that waits wants more rollout servers; samplers that wait, fewer.",
    ),
    Panel(
        "Versions",
        {
            'sgg_policy_version{run="$run"}': "to serve",
            'min(sgg_rollout_server_policy_version{run="$run"})': "oldest served",
            'sgg_committed_step{run="$run"}': "in a checkpoint",
        },
    ),
    _LAG,
    Panel("Free on the run's disk", _last(sgg_run_disk_free_bytes="free"), unit="bytes"),
]

_ROLLOUT = [
    Panel("Servers by state", _last(sgg_rollout_servers="{{state}}"), stacked=True),
    Panel(
        "Versions behind",
        _last(sgg_rollout_server_policy_lag="{{server}}", sgg_max_policy_lag="limit"),
    ),
    Panel("Tokens a second", _rate("rollout_tokens_total", "instance"), stacked=True),
    Panel("Groups being sampled", _last(rollout_groups_in_flight="{{instance}}")),
    _shares(
        "Share of a server's places in use",
        {
            'sgg_rollout_server_groups_in_flight{run="$run"}'
            ' / sgg_rollout_server_groups_limit{run="$run"}': "{{server}}"
        },
    ),
    Panel("Groups a second", _rate("rollout_groups_total", "outcome")),
    _seconds("Time to sample a group", _quantiles("rollout_group_seconds")),
    _seconds(
        "Weight updates",
        _quantiles("rollout_weight_update_seconds", by="phase"),
        about="Stage goes on beside sampling; sampling waits for commit.",
    ),
    Panel(
        "Weight updates that failed, a second",
        _rate("rollout_weight_update_failures_total", "instance, phase"),
    ),
    Panel(
        "Answers by status, a second",
        _rate("http_requests_total", "status", ',service="rollout"'),
    ),
    _seconds(
        "Event loop's lag",
        _quantiles("rollout_event_loop_lag_seconds"),
        about="How late health checks and heartbeats are.",
    ),
    Panel(
        "Memory of the process",
        {'process_resident_memory_bytes{run="$run",service="rollout"}': "{{instance}}"},
        unit="bytes",
    ),
    _shares("vLLM: KV cache in use", {'vllm:kv_cache_usage_perc{run="$run"}': "{{instance}}"}),
    Panel(
        "vLLM: completions",
        {
            'sum(vllm:num_requests_running{run="$run"})': "running",
            'sum(vllm:num_requests_waiting{run="$run"})': "waiting",
        },
    ),
    Panel(
        "vLLM: completions put back for lack of cache, a second",
        _rate("vllm:num_preemptions_total", "instance"),
        about="Above 0 for long: lower rollout.max_num_seqs.",
    ),
]

_REWARDS = [
    _REWARD,
    _TERMS,
    Panel("Spread of the reward", _of_step("reward_std")),
    _shares(
        "Groups without spread",
        {'sgg:trainer_without_spread:ratio{run="$run"}': "share"},
        about="All completions of such a group have the same reward: it teaches nothing.",
    ),
    _shares(
        "Answers that are no scene graph",
        _last(sgg_trainer_failures="{{status}}"),
        stacked=True,
    ),
    Panel("Length of completions", _of_step("completion_length_mean", "completion_length_max")),
    Panel(
        "Service: completions scored, a second",
        _rate("reward_completions_total", "status"),
        stacked=True,
    ),
    _seconds("Service: time to score a request", _quantiles("reward_scoring_seconds")),
    _seconds(
        "Service: time to answer, with waiting",
        _quantiles("http_request_duration_seconds", only=',route="/v1/rewards"'),
    ),
    Panel(
        "Service: requests waiting or in work",
        _last(reward_queue_depth="{{instance}}"),
        about="From 64 a worker on, requests are refused: raise reward.workers.",
    ),
    Panel(
        "Service: answers by status, a second",
        _rate("http_requests_total", "status", ',service="reward"'),
    ),
    Panel(
        "Service: groups that could not be scored, a second",
        _rate("reward_group_errors_total", "instance"),
    ),
]

_TRAINER = [
    _stat("Since the last step", {_STEP_AGE: ""}, unit="s"),
    _stat("Usual time between steps", _of_step("step_interval_seconds"), unit="s"),
    _stat(
        "Since rank 0's sign of life",
        {'time() - sgg_trainer_beat_timestamp_seconds{run="$run"}': ""},
        unit="s",
        red_from=60,
    ),
    _stat("Rank 0 is in", _last(sgg_trainer_phase="{{phase}}")),
    _stat("Starts", _last(sgg_trainer_incarnation="")),
    _stat(
        "Steps that a crash would undo",
        {'sgg_trainer_step{run="$run"} + 1 - sgg_committed_step{run="$run"}': ""},
    ),
    Panel(
        "Loss",
        _of_step("loss"),
        about="Near 0 and of either sign: it is no measure of progress.",
    ),
    Panel("Norm of the gradient", _of_step("grad_norm")),
    Panel("Learning rate", _of_step("learning_rate")),
    Panel("Entropy", _of_step("entropy"), about="Nats a token; falls slowly."),
    Panel(
        "KL of sampler and trainer",
        _of_step("mismatch_kl", "mismatch_k3"),
        about="Nats a token: staleness and implementation together.",
    ),
    Panel("Largest difference of a token", _of_step("mismatch_max")),
    Panel("KL to the reference", _of_step("ref_kl")),
    _shares(
        "Held by the clip", _of_step("clip_fraction", "clip_low_fraction", "clip_high_fraction")
    ),
    Panel("Mean ratio", _of_step("ratio_mean")),
    _PHASES,
    Panel(
        "Tokens of a step",
        _of_step("num_tokens", "num_model_tokens"),
        about="Sampled ones, and all that the model computes on.",
    ),
    _shares("Lost in a step", _of_step("rank_imbalance")),
    _LAG,
    _OUTCOMES,
    Panel("Evaluations since this start", _of_step("evaluations_failed", "evaluations_skipped")),
]

_QUEUE = [
    Panel(
        "Groups on the streams",
        _last(sgg_queue_groups="{{stream}} {{state}}"),
        stacked=True,
        about="At most (max_policy_lag + 1) * groups_per_step are open.",
    ),
    _seconds("Age of the oldest group", _last(sgg_queue_oldest_age_seconds="{{stream}}")),
    Panel(
        "Open groups when a batch was formed",
        _of_step("groups_sampling", "groups_scoring", "groups_ready"),
        stacked=True,
        about="The waiting part has the most.",
    ),
    _OUTCOMES,
    Panel(
        "Dead letters",
        {'sgg_dead_letters{run="$run"} > 0': "{{stream}} {{reason}}"},
        stacked=True,
        about="`sgg-rl dead list` has each with its errors.",
    ),
    Panel(
        "Stale, dead, replaced in the last step",
        _of_step("num_stale", "num_dead", "num_replaced"),
    ),
    Panel(
        "Redis: memory",
        {
            'sgg_redis_memory_bytes{run="$run"}': "used",
            'sgg_redis_memory_limit_bytes{run="$run"} > 0': "limit",
        },
        unit="bytes",
    ),
    Panel(
        "Redis: up, and writing to its file",
        _last(sgg_redis_up="up", sgg_redis_persistent="persistent"),
    ),
]

DASHBOARDS = [
    Dashboard("sgg-run", "sgg-rl: run overview", _RUN),
    Dashboard("sgg-rollout", "sgg-rl: rollout servers", _ROLLOUT),
    Dashboard("sgg-reward", "sgg-rl: reward", _REWARDS),
    Dashboard("sgg-trainer", "sgg-rl: trainer", _TRAINER),
    Dashboard("sgg-queue", "sgg-rl: queue", _QUEUE),
]
