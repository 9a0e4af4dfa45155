"""What the sections of settings must be to each other, known before anything is loaded."""

import logging
from importlib.util import find_spec

from services.errors import SettingsError
from services.settings.tree import Settings

logger = logging.getLogger(__name__)

_MOST_OF_A_SHARED_GPU = 0.6
"""Share of a GPU's memory for vLLM where a trainer rank is on it too: the policy, its gradients and
activations need the rest at the least."""


def check_grpo(settings: Settings) -> None:
    """Refuse settings that each make sense alone, and not together, for `sgg-rl train`.

    Raises:
        SettingsError: With the fields and what to set.
    """
    check_shared_gpus(settings)
    lora = settings.lora
    if (lora.rank > 0) != settings.weights.traits.adapter_alone:
        raise SettingsError(
            f"lora.rank = {lora.rank} and weights.transport = '{settings.weights.transport}': an "
            "adapter is trained and sent alone, so set lora.rank over 0 and the transport 'lora', "
            "or neither"
        )
    if lora.rank > settings.rollout.max_lora_rank:
        raise SettingsError(
            f"lora.rank ({lora.rank}) is over rollout.max_lora_rank "
            f"({settings.rollout.max_lora_rank}): raise that"
        )
    if lora.dropout:
        raise SettingsError(
            "lora.dropout is for SFT: in GRPO the trainer must score with the weights that sampled"
        )


def check_shared_gpus(settings: Settings) -> None:
    """Refuse a server that leaves too little of a GPU to the rank that is on it too.

    Raises:
        SettingsError: With what to set.
    """
    share = settings.rollout.gpu_memory_utilization
    if settings.shares_gpus and share > _MOST_OF_A_SHARED_GPU:
        raise SettingsError(
            f"rollout.gpu_memory_utilization is {share:g}: a trainer rank is on the same GPU; "
            f"leave it room, with {_MOST_OF_A_SHARED_GPU:g} at most (docs/deploy/gh200.md)"
        )


def check_ipc_servers(settings: Settings) -> None:
    """Refuse servers that no rank is on the GPU of.

    Raises:
        SettingsError: With what to set.
    """
    ranks, gpus = settings.trainer.num_ranks, settings.num_rollout_gpus
    if settings.weights.traits.same_gpu and gpus > ranks:
        raise SettingsError(
            f"weights.transport = 'ipc' gives each rank's weights to the server on its GPU: set "
            f"cluster.num_rollout_servers ({settings.cluster.num_rollout_servers}) times "
            f"rollout.tensor_parallel_size ({settings.rollout.tensor_parallel_size}) to "
            f"trainer.num_ranks ({ranks}) at most"
        )


def check_shared_transport(settings: Settings) -> None:
    """Refuse a transport that cannot work within one GPU.

    Raises:
        SettingsError: With what to set.
    """
    if settings.weights.traits.joins_group:
        raise SettingsError(
            "weights.transport = 'nccl' cannot send to the GPU that it sends from: where trainer "
            "and server share each GPU use ipc"
        )


def check_trackers(settings: Settings) -> None:
    """Refuse a start whose curves could not be drawn, without loading the packages that draw.

    Raises:
        SettingsError: With what to do.
    """
    for package in ("tensorboard", "wandb", "trackio"):
        if getattr(settings.records, package) and find_spec(package) is None:
            raise SettingsError(
                f"records.{package} is on and {package} is not installed: pip install {package}, "
                "or set it to false"
            )


def num_micro_batches(settings: Settings) -> int:
    """Micro batches of one optimizer step of SFT on one rank.

    Raises:
        SettingsError: A step's answers do not make the same number of them on every rank.
    """
    sft, num_ranks = settings.sft, settings.trainer.num_ranks
    number, rest = divmod(sft.batch_size, sft.micro_batch_size * num_ranks)
    if rest:
        raise SettingsError(
            f"sft.batch_size ({sft.batch_size}) must be a multiple of sft.micro_batch_size "
            f"({sft.micro_batch_size}) times trainer.num_ranks ({num_ranks})"
        )
    return number


def log_advice(settings: Settings) -> None:
    """Warn of what is allowed, and probably not meant."""
    for line in advice(settings):
        logger.warning(line)


def advice(settings: Settings) -> list[str]:
    """What is allowed, and probably not meant."""
    algorithm, lines = settings.algorithm, []
    if algorithm.loss == "gspo" and algorithm.clip_high > 0.05:
        lines.append(
            f"algorithm.clip_high = {algorithm.clip_high:g} never clips with gspo, whose ratios "
            "are of whole completions: its paper has clip_low = 3e-4 and clip_high = 4e-4"
        )
    if algorithm.loss == "dr_grpo" and algorithm.advantage_scale == "group":
        lines.append(
            "dr_grpo leaves the standard deviation out: algorithm.advantage_scale = 'none'"
        )
    if algorithm.normalise == "terms" and algorithm.advantage_scale == "group":
        lines.append(
            "normalise = 'terms' with advantage_scale = 'group' makes all groups weigh the same, "
            "however many of their terms differ: GDPO has 'batch'"
        )
    stale = settings.trainer.max_policy_lag > 0
    if algorithm.old_logprobs == "trainer" and algorithm.correction == "none" and stale:
        lines.append(
            "old_logprobs = 'trainer' without a correction takes stale completions for fresh ones: "
            "set algorithm.correction, or trainer.max_policy_lag = 0"
        )
    return lines
