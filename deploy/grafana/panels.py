"""What the dashboards show: titles, units, and PromQL by legend. `build.py` makes the JSON.

`$run` is the chosen run. `docs/metrics.md` explains every number of a step, and
`docs/operations.md` what to do.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel.

    Example: `Panel(title="Loss", series={'sgg_trainer_loss{run="$run"}': "loss"})`
    """

    title: str
    series: dict[str, str]
    """PromQL to legend, in which `{{label}}` is a label's value."""
    unit: str = "short"
    """Of Grafana: `s`, `bytes`, `percentunit` …"""
    type: Literal["timeseries", "stat", "table"] = "timeseries"
    about: str = ""
    """Shown where one points at the panel."""
    stacked: bool = False
    red_from: float | None = None
    """A value from which on it is red."""
    red_below: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    """Part of its address; the file's name too."""
    title: str
    panels: list[Panel]


def _of_step(*keys: str) -> dict[str, str]:
    """Numbers of the last step, as `metrics.jsonl` names them."""
    return {f'sgg_trainer_{key}{{run="$run"}}': key for key in keys}


def _quantiles(histogram: str, by: str = "", only: str = "") -> dict[str, str]:
    """Median and 95th percentile of a histogram of the run's services."""
    place = f'{{run="$run"{only}}}[$__rate_interval]'
    groups, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = f"sum by ({groups}) (rate({histogram}_bucket{place}))"
    return {f"histogram_quantile({q}, {rates})": f"p{q * 100:g}{legend}" for q in (0.5, 0.95)}


def _rate(counter: str, by: str, only: str = "") -> dict[str, str]:
    place = f'{{run="$run"{only}}}[$__rate_interval]'
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {f"sum by ({by}) (rate({counter}{place}))": legend}


_STEP_AGE = 'time() - sgg_trainer_last_timestamp_seconds{run="$run"}'
_ABLE = 'sum(sgg_rollout_servers{run="$run",state=~"ready|updating"})'
_REWARD = Panel(
    title="Reward",
    series=_of_step("reward_mean", "reward_min", "reward_max"),
    about="Total reward over all completions of a step, in the rubric's scale.",
)
_TERMS = Panel(
    title="Terms of the reward",
    series={'sgg_trainer_reward_terms{run="$run"}': "{{term}}"},
    about="One that rises while the others fall is being gamed.",
)
_PHASES = Panel(
    title="Where a step's time goes",
    series={'sgg_trainer_phases_seconds{run="$run"}': "{{phase}}"},
    unit="s",
    stacked=True,
)
_LAG = Panel(
    title="Policy lag of what is trained on",
    series=_of_step("policy_lag_mean", "policy_lag_max")
    | {'sgg_max_policy_lag{run="$run"}': "limit"},
    about="Versions between the trainer and the oldest token of a completion.",
)
_OUTCOMES = Panel(
    title="What becomes of groups, a second",
    series=_rate("sgg_trainer_groups_total", "outcome"),
)

RUN = Dashboard(
    uid="sgg-run",
    title="sgg-rl: run overview",
    panels=[
        Panel(type="stat", title="Step", series=_of_step("step", "num_steps")),
        Panel(
            type="stat",
            title="Since the last step",
            series={_STEP_AGE: ""},
            unit="s",
            about="Compare with the usual time between steps, on the trainer's page.",
        ),
        Panel(type="stat", title="Mean reward", series=_of_step("reward_mean")),
        Panel(type="stat", title="Rollout servers at work", series={_ABLE: ""}, red_below=1),
        Panel(type="stat", title="Redis", series={'sgg_redis_up{run="$run"}': "up"}, red_below=1),
        Panel(
            type="stat",
            title="Dead letters",
            series={'sum(sgg_dead_letters{run="$run"})': ""},
            red_from=1,
        ),
        Panel(
            type="table",
            title="Alerts",
            series={'ALERTS{run="$run",alertstate="firing"}': ""},
            about="docs/operations.md says what to do about each.",
        ),
        _REWARD,
        _TERMS,
        Panel(
            title="Held-out images, strict",
            series={
                f'sgg_evaluation_{key}{{run="$run"}}': key
                for key in ("triplet_f1", "triplet_recall", "object_f1")
            },
            about="Only with evaluation.every; of one kind only where the task is cls or det.",
        ),
        Panel(
            title="Answers that are not as they should be",
            series=_of_step("failure_rate", "truncated_rate"),
            unit="percentunit",
        ),
        Panel(
            title="Tokens a second",
            series=_of_step("tokens_per_second")
            | {'sum(sgg_rollout_server_tokens_per_second{run="$run"})': "sampled by all servers"},
        ),
        _PHASES,
        Panel(
            title="Idle",
            series=_of_step("trainer_idle_fraction", "sampler_idle_fraction"),
            unit="percentunit",
            about="A trainer that waits wants more rollout servers; samplers that wait, fewer.",
        ),
        Panel(
            title="Versions",
            series={
                'sgg_policy_version{run="$run"}': "to serve",
                'min(sgg_rollout_server_policy_version{run="$run"})': "oldest served",
                'sgg_committed_step{run="$run"}': "in a checkpoint",
            },
        ),
        _LAG,
        Panel(
            title="Free on the run's disk",
            series={'sgg_run_disk_free_bytes{run="$run"}': "free"},
            unit="bytes",
        ),
    ],
)

ROLLOUT = Dashboard(
    uid="sgg-rollout",
    title="sgg-rl: rollout servers",
    panels=[
        Panel(
            title="Servers by state",
            series={'sgg_rollout_servers{run="$run"}': "{{state}}"},
            stacked=True,
        ),
        Panel(
            title="Versions behind",
            series={
                'sgg_rollout_server_policy_lag{run="$run"}': "{{server}}",
                'sgg_max_policy_lag{run="$run"}': "limit",
            },
        ),
        Panel(
            title="Tokens a second",
            series=_rate("rollout_tokens_total", "instance"),
            stacked=True,
        ),
        Panel(
            title="Groups being sampled",
            series={'rollout_groups_in_flight{run="$run"}': "{{instance}}"},
        ),
        Panel(
            title="Share of a server's places in use",
            series={
                'sgg_rollout_server_groups_in_flight{run="$run"}'
                ' / sgg_rollout_server_groups_limit{run="$run"}': "{{server}}"
            },
            unit="percentunit",
        ),
        Panel(title="Groups a second", series=_rate("rollout_groups_total", "outcome")),
        Panel(title="Time to sample a group", series=_quantiles("rollout_group_seconds"), unit="s"),
        Panel(
            title="Weight updates",
            series=_quantiles("rollout_weight_update_seconds", by="phase"),
            unit="s",
            about="Stage goes on beside sampling; sampling waits for commit.",
        ),
        Panel(
            title="Weight updates that failed, a second",
            series=_rate("rollout_weight_update_failures_total", "instance, phase"),
        ),
        Panel(
            title="Answers by status, a second",
            series=_rate("http_requests_total", "status", ',service="rollout"'),
        ),
        Panel(
            title="Event loop's lag",
            series=_quantiles("rollout_event_loop_lag_seconds"),
            unit="s",
            about="How late health checks and heartbeats are.",
        ),
        Panel(
            title="Memory of the process",
            series={'process_resident_memory_bytes{run="$run",service="rollout"}': "{{instance}}"},
            unit="bytes",
        ),
        Panel(
            title="vLLM: KV cache in use",
            series={'vllm:kv_cache_usage_perc{run="$run"}': "{{instance}}"},
            unit="percentunit",
        ),
        Panel(
            title="vLLM: completions",
            series={
                'sum(vllm:num_requests_running{run="$run"})': "running",
                'sum(vllm:num_requests_waiting{run="$run"})': "waiting",
            },
        ),
        Panel(
            title="vLLM: completions put back for lack of cache, a second",
            series=_rate("vllm:num_preemptions_total", "instance"),
            about="Above 0 for long: lower rollout.max_num_seqs.",
        ),
    ],
)

REWARD = Dashboard(
    uid="sgg-reward",
    title="sgg-rl: reward",
    panels=[
        _REWARD,
        _TERMS,
        Panel(title="Spread of the reward", series=_of_step("reward_std")),
        Panel(
            title="Groups without spread",
            series={'sgg:trainer_without_spread:ratio{run="$run"}': "share"},
            unit="percentunit",
            about="All completions of such a group have the same reward: it teaches nothing.",
        ),
        Panel(
            title="Answers that are no scene graph",
            series={'sgg_trainer_failures{run="$run"}': "{{status}}"},
            unit="percentunit",
            stacked=True,
        ),
        Panel(
            title="Length of completions",
            series=_of_step("completion_length_mean", "completion_length_max"),
        ),
        Panel(
            title="Service: completions scored, a second",
            series=_rate("reward_completions_total", "status"),
            stacked=True,
        ),
        Panel(
            title="Service: time to score a request",
            series=_quantiles("reward_scoring_seconds"),
            unit="s",
        ),
        Panel(
            title="Service: time to answer, with waiting",
            series=_quantiles("http_request_duration_seconds", only=',route="/v1/rewards"'),
            unit="s",
        ),
        Panel(
            title="Service: requests waiting or in work",
            series={'reward_queue_depth{run="$run"}': "{{instance}}"},
            about="From 64 a worker on, requests are refused: raise reward.workers.",
        ),
        Panel(
            title="Service: answers by status, a second",
            series=_rate("http_requests_total", "status", ',service="reward"'),
        ),
        Panel(
            title="Service: groups that could not be scored, a second",
            series=_rate("reward_group_errors_total", "instance"),
        ),
    ],
)

TRAINER = Dashboard(
    uid="sgg-trainer",
    title="sgg-rl: trainer",
    panels=[
        Panel(type="stat", title="Since the last step", series={_STEP_AGE: ""}, unit="s"),
        Panel(
            type="stat",
            title="Usual time between steps",
            series=_of_step("step_interval_seconds"),
            unit="s",
        ),
        Panel(
            type="stat",
            title="Since rank 0's sign of life",
            series={'time() - sgg_trainer_beat_timestamp_seconds{run="$run"}': ""},
            unit="s",
            red_from=60,
        ),
        Panel(
            type="stat",
            title="Rank 0 is in",
            series={'sgg_trainer_phase{run="$run"}': "{{phase}}"},
        ),
        Panel(type="stat", title="Starts", series={'sgg_trainer_incarnation{run="$run"}': ""}),
        Panel(
            type="stat",
            title="Steps that a crash would undo",
            series={
                'sgg_trainer_step{run="$run"} + 1 - sgg_committed_step{run="$run"}': "",
            },
        ),
        Panel(
            title="Loss",
            series=_of_step("loss"),
            about="Near 0 and of either sign: it is no measure of progress.",
        ),
        Panel(title="Norm of the gradient", series=_of_step("grad_norm")),
        Panel(title="Learning rate", series=_of_step("learning_rate")),
        Panel(title="Entropy", series=_of_step("entropy"), about="Nats a token; falls slowly."),
        Panel(
            title="KL of sampler and trainer",
            series=_of_step("mismatch_kl", "mismatch_k3"),
            about="Nats a token: staleness and implementation together.",
        ),
        Panel(title="Largest difference of a token", series=_of_step("mismatch_max")),
        Panel(title="KL to the reference", series=_of_step("ref_kl")),
        Panel(
            title="Held by the clip",
            series=_of_step("clip_fraction", "clip_low_fraction", "clip_high_fraction"),
            unit="percentunit",
        ),
        Panel(title="Mean ratio", series=_of_step("ratio_mean")),
        _PHASES,
        Panel(
            title="Tokens of a step",
            series=_of_step("num_tokens", "num_model_tokens"),
            about="Sampled ones, and all that the model computes on.",
        ),
        Panel(
            title="Lost in a step",
            series=_of_step("padding_share", "rank_imbalance"),
            unit="percentunit",
        ),
        _LAG,
        _OUTCOMES,
        Panel(
            title="Evaluations since this start",
            series=_of_step("evaluations_failed", "evaluations_skipped"),
        ),
    ],
)

QUEUE = Dashboard(
    uid="sgg-queue",
    title="sgg-rl: queue",
    panels=[
        Panel(
            title="Groups on the streams",
            series={'sgg_queue_groups{run="$run"}': "{{stream}} {{state}}"},
            stacked=True,
            about="At most (max_policy_lag + 1) * groups_per_step are open.",
        ),
        Panel(
            title="Age of the oldest group",
            series={'sgg_queue_oldest_age_seconds{run="$run"}': "{{stream}}"},
            unit="s",
        ),
        Panel(
            title="Open groups when a batch was formed",
            series=_of_step("groups_sampling", "groups_scoring", "groups_ready"),
            stacked=True,
            about="The waiting part has the most.",
        ),
        _OUTCOMES,
        Panel(
            title="Dead letters",
            series={'sgg_dead_letters{run="$run"} > 0': "{{stream}} {{reason}}"},
            stacked=True,
            about="`sgg-rl dead list` has each with its errors.",
        ),
        Panel(
            title="Stale, dead, replaced in the last step",
            series=_of_step("num_stale", "num_dead", "num_replaced"),
        ),
        Panel(
            title="Redis: memory",
            series={
                'sgg_redis_memory_bytes{run="$run"}': "used",
                'sgg_redis_memory_limit_bytes{run="$run"} > 0': "limit",
            },
            unit="bytes",
        ),
        Panel(
            title="Redis: up, and writing to its file",
            series={
                'sgg_redis_up{run="$run"}': "up",
                'sgg_redis_persistent{run="$run"}': "persistent",
            },
        ),
    ],
)

DASHBOARDS = [RUN, ROLLOUT, REWARD, TRAINER, QUEUE]
