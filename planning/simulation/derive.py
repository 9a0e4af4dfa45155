"""Rates from what a cluster's GPUs can do and what a run asks of them.

Roofline estimates (Williams et al., 2009), for lack of a measured run: decoding is bound by reading
the weights once a step, work on prompts and training by arithmetic, a version's way by its bytes.
Formulas are in `docs/sizing.md`; each rate carries the one that it came from.
"""

import math

from planning.estimate import num_trainable, version_bytes, weight_bytes
from planning.shapes import ModelShape
from planning.simulation.cluster import Basis, Cluster, Given
from services.settings import Settings

RateTable = dict[str, Given]

_DOUBLED_SERVER = 0.85
"""Assumed: the share of a GPU's pace that is left each time a server's GPUs double, for each layer
ends in a sum over all of them."""
_PATCHES = 4
"""Patches of a visual token; each passes the vision tower."""
BENCHMARKS: RateTable = {
    name: Given(value=value, basis="benchmark", source=command)
    for name, value, command in (
        ("admit_s", 0.0007, "benchmarks/plan.py --costs"),
        ("redis_s", 1 / 1200, "benchmarks/many_servers.py: 1,200 cycles/s"),
        ("collect_s", 0.0024, "benchmarks/plan.py --costs: 150 kB"),
        ("count_open_s", 1.2e-7, "benchmarks/plan.py --costs: 0.47 ms for 4,096"),
        ("score_s", 0.0016, "benchmarks/reward_http.py: 30 x 20, one worker"),
        ("score_request_s", 0.003, "benchmarks/reward_http.py: p50"),
        ("spread_s", 0.00055, "benchmarks/batch_to_ranks.py: rank 0, 8 x 1,000 tokens"),
        ("call_s", 0.0028, "benchmarks/plan.py --costs"),
        ("hash_bytes_per_s", 2.7e9, "benchmarks/weights.py: blake3 of one core"),
        ("delta_share", 0.0122, "benchmarks/delta.py: of a version's bytes, at a rate of 6e-7"),
        ("apply_bytes_per_s", 8e9, "benchmarks/delta.py: of the version, one core"),
    )
}
"""What the project's own processes take for one thing, on 2 cores without a GPU."""


def derived(settings: Settings, cluster: Cluster, shape: ModelShape) -> RateTable:
    """All rates, the cluster's own over derived ones."""
    table = {
        **BENCHMARKS,
        **_workload(settings, cluster, shape),
        **_sampling(settings, cluster, shape),
        **_training(settings, cluster, shape),
        **_weights(settings, cluster, shape),
    }
    return table | cluster.rates


def _given(value: float, source: str, basis: Basis = "derived") -> Given:
    return Given(value=value, basis=basis, source=source)


def _workload(settings: Settings, cluster: Cluster, shape: ModelShape) -> RateTable:
    visual = settings.model.max_pixels / (_PATCHES * shape.patch_size**2)
    text = cluster.workload.prompt_text_tokens.value
    tower = _PATCHES * shape.tower / shape.language
    return {
        "prompt_tokens": _given(
            text + visual * (1 + tower), "text + visual tokens, the tower's work counted as tokens"
        ),
        "length_mean": cluster.workload.length_mean,
        "length_sigma": cluster.workload.length_sigma,
    }


def _sampling(settings: Settings, cluster: Cluster, shape: ModelShape) -> RateTable:
    hardware, size = cluster.hardware, settings.rollout.tensor_parallel_size
    speed = size * _DOUBLED_SERVER ** math.log2(size)
    memory = hardware.memory_bytes_per_s.value * hardware.decode_share.value * speed
    flops = hardware.flops.value * hardware.prefill_share.value * speed
    weights = weight_bytes(settings) * shape.language
    prompt_tokens = _workload(settings, cluster, shape)["prompt_tokens"].value
    answer = min(cluster.workload.length_mean.value, settings.sampling.max_tokens)
    context = prompt_tokens + answer / 2
    kv = 2 * shape.key_size * weight_bytes(settings) * context
    step = weights / memory + hardware.decode_step_s.value
    each = 2 * shape.language / flops + kv / memory + hardware.decode_sequence_s.value
    prompt = 2 * shape.language * prompt_tokens
    return {
        "tokens_per_s": _given(1 / each, "1 / seconds of a sequence in a decoding step"),
        "half_sequences": _given(step / each, "seconds of a step / those of a sequence"),
        "prompt_s": _given(prompt / flops, "2 FLOP a parameter and prompt token"),
        "prefill_token_s": _given(2 * shape.language / flops, "2 FLOP a parameter and token"),
    }


def _training(settings: Settings, cluster: Cluster, shape: ModelShape) -> RateTable:
    hardware, trainer = cluster.hardware, settings.trainer
    algorithm = settings.algorithm
    updates = algorithm.num_iterations * algorithm.num_mini_batches
    passes = algorithm.num_iterations * (8.0 if trainer.gradient_checkpointing else 6.0)
    passes += 2 * (1 - 1 / algorithm.num_mini_batches)  # before the first update
    flops = hardware.flops.value * hardware.training_share.value
    gradients = 2 * version_bytes(settings, shape)
    states = (12 + 2) * num_trainable(settings, shape)
    return {
        "token_s": _given(
            passes * shape.language / flops, f"{passes:g} FLOP a parameter and token"
        ),
        "fixed_s": _given(
            updates * (gradients / hardware.link_bytes_per_s.value + hardware.step_s.value),
            "gradients twice over a GPU's link, and step_s, for each update",
        ),
        "doubling_efficiency": _given(
            0.97, "of every doubling of the trainer's GPUs", "assumption"
        ),
        "prepare_s": _given(0.05, "images of one rank; beside the step before", "assumption"),
        "checkpoint_s": _given(
            states / hardware.files_bytes_per_s.value, "weights and optimizer, all ranks together"
        ),
    }


def _weights(settings: Settings, cluster: Cluster, shape: ModelShape) -> RateTable:
    """Seconds of a version: whatever the number of servers, for each of them, for each round.

    With deltas every version is one: the whole one in fifty is left out. To compare a version takes
    the trainer no longer than to write it whole (`benchmarks/delta.py`).
    """
    hardware, size = cluster.hardware, float(version_bytes(settings, shape))
    rate = {name: given.value for name, given in BENCHMARKS.items()}
    hashed, file = rate["hash_bytes_per_s"], hardware.file_bytes_per_s.value
    link, host = hardware.link_bytes_per_s.value, hardware.host_bytes_per_s.value
    calls = 2
    transport, traits = settings.weights.transport, settings.weights.traits
    stage, more, each_round, commit = size / hashed, 0.0, 0.0, size / 10e9
    sent, applied = size, 0.0
    if settings.weights.encoding == "delta":
        sent, applied = size * rate["delta_share"], size / rate["apply_bytes_per_s"]
        stage = applied
    if traits.same_host:
        how = "hashed by one core each"
    elif traits.in_run_folder:
        stage, more = applied + sent / min(hashed, file), sent / hardware.files_bytes_per_s.value
        how = "read and hashed by each; the file system shared by all"
    elif traits.through_file:
        each_round, calls = applied + sent / min(hashed, host), 4
        how = "hashed while it comes"
    elif traits.same_gpu:
        stage, commit = 0.1, size / hardware.memory_bytes_per_s.value
        how = "a copy on the GPU"
    else:
        stage, commit, how = 0.1, size / link, "one broadcast, in the commit"
    if applied:
        how = "the delta, and then applied"
    gathered, written, who = size / link, 0.0, "nothing"
    if traits.through_file and not traits.adapter_alone:
        written, who = size / hashed, "one rank alone"
    if settings.weights.written_together:
        who = "one rank; all write a share each"
        if traits.in_run_folder:
            written = size / min(hashed, file)
            gathered = max(gathered, size / hardware.files_bytes_per_s.value)
    return {
        "export_s": _given(gathered, "gathered, while the step waits"),
        "write_s": _given(written, f"meanwhile, hashed and written: {who}"),
        "stage_s": _given(stage, f"{transport}: {how}"),
        "stage_more_s": _given(more + calls * rate["call_s"], f"{transport}: for each server"),
        "stage_round_s": _given(each_round, f"{transport}: passed on from server to server"),
        "commit_s": _given(commit + 0.05, "servers pause to load it"),
    }
