"""What of a recipe a rehearsal changes: what costs time, and what this machine does not have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.settings import Settings
from services.settings.parts import MonitorSettings, RewardSettings, RolloutSettings

NUM_STEPS = 2
"""GRPO's: one before the kill, one after the resume, which trains on what the first one made."""
KILL_AFTER = 1
"""Steps: the first checkpoint."""
NUM_IMAGES = 2
"""Held out, and inferred."""
NUM_ROWS = 8
"""Made-up rows to train on."""

Tables = dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that is another one in the rehearsal.

    Example: `Change("trainer.groups_per_step", 32, 1)`
    """

    field: str
    recipe: object
    here: object

    def __str__(self) -> str:
        return f"{self.field} {self.recipe} -> {self.here}"


def cut_settings(recipe: Settings, folder: Path, *, num_gpus: int, max_tokens: int) -> Settings:
    """The recipe's settings as this machine rehearses them: one group a rank, few steps.

    What stays: pixels, prompts, `rollout.max_model_len`, group size, ZeRO stage, offload, what is
    frozen, LoRA, loss, rubric, and the transport where there is what it needs.

    Args:
        recipe: `model.path` and data are those of the rehearsal already.
        folder: Where the runs are made.
        num_gpus: Of this machine; 0: it rehearses on the CPU.
        max_tokens: Tokens that a completion gets, at most the recipe's.
    """
    ranks, servers, size = _shares(recipe, num_gpus)
    tokens = min(max_tokens, recipe.sampling.max_tokens)
    micro_batch = recipe.sft.micro_batch_size if num_gpus else 1
    tables: Tables = {
        "run": {"root": folder, "name": "grpo"},
        "sampling": {"max_tokens": tokens},
        "algorithm": {"max_replaced": ranks * recipe.algorithm.dynamic_sampling},
        "trainer": {
            "num_ranks": ranks,
            "num_steps": NUM_STEPS,
            "groups_per_step": ranks * recipe.algorithm.num_mini_batches,
            "checkpoint_every": KILL_AFTER,
            "keep_checkpoints": 1,
            "warmup_steps": 0,
        },
        "sft": {"num_steps": 1, "micro_batch_size": micro_batch, "batch_size": ranks * micro_batch},
        "evaluation": {"every": 0, "num_images": NUM_IMAGES, "max_tokens": tokens},
        "cluster": {"num_rollout_servers": servers},
        "records": {"tensorboard": False, "wandb": False, "trackio": False},
        **_on_this_host(),
    }
    tables["rollout"]["tensor_parallel_size"] = size
    cut = recipe.changed(**tables)
    return cut if num_gpus else cut.changed(**_on_cpu(cut))


def sft_settings(cut: Settings) -> Settings:
    """Those of the SFT step that comes first; the rows need no column with thoughts."""
    return cut.changed(run={"name": "sft"}, data={"thinking": False, "heldout": None})


def changes(recipe: Settings, cut: Settings) -> list[Change]:
    """Every setting that differs, but names, folders and addresses."""
    apart = ("run.", "redis.url", "reward.url", "rollout.url", "monitor.url", "security.")
    before, after = (dict(_flat(s.model_dump(mode="json"))) for s in (recipe, cut))
    return [
        Change(field=field, recipe=before.get(field), here=here)
        for field, here in after.items()
        if before.get(field) != here and not field.startswith(apart)
    ]


def _shares(recipe: Settings, num_gpus: int) -> tuple[int, int, int]:
    """Ranks, servers and GPUs of each: as many as the recipe has, where there are GPUs for them."""
    ranks, servers = recipe.trainer.num_ranks, recipe.cluster.num_rollout_servers
    size = recipe.rollout.tensor_parallel_size
    if num_gpus <= 1:
        return 1, 1, 1
    most = num_gpus if recipe.shares_gpus else max(num_gpus // 2, num_gpus - ranks)
    while size > most:
        size //= 2
    servers = max(1, min(servers, most // size))
    ranks = min(ranks, num_gpus if recipe.shares_gpus else num_gpus - servers * size)
    return ranks, min(servers, ranks // size) if recipe.shares_gpus else servers, size


def _on_this_host() -> Tables:
    """Every part on this machine, for itself: no addresses and secrets of a cluster."""
    return {
        "redis": {"url": "redis://127.0.0.1:6379/0", "password_file": None},
        "reward": {"url": RewardSettings().url},
        "rollout": {"url": RolloutSettings().url},
        "monitor": {"url": MonitorSettings().url},
        "security": {"data_token_file": None, "admin_token_file": None, "rollout_hosts": None},
        "telemetry": {"otlp_endpoint": None},
    }


def _on_cpu(cut: Settings) -> Tables:
    """Float32, since CPUs are slow in bfloat16; and no transport from GPU to GPU."""
    traits = cut.weights.traits
    from_gpu = traits.same_gpu or traits.joins_group
    return {
        "model": {"dtype": "float32"},
        "weights": {"transport": "shm" if from_gpu else cut.weights.transport},
        "rollout": {"enforce_eager": True, "model_runner": "v1"},
        "deploy": {"kind": "single" if cut.shares_gpus else cut.deploy.kind},
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict) and prefix == "":
            yield from _flat(value, f"{key}.")
        else:
            yield prefix + key, value
