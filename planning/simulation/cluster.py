"""A cluster as the plan knows it: GPUs, what they can do, and what rates are given.

Every number says what it rests on, so that nothing assumed is read as measured. Files that ship are
in `configs/clusters`; a name without a path is one of them.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from scene_data.reading.sources import is_hub_name
from scene_data.templates import check_instruction
from services.bundled import bundled
from services.errors import SettingsError
from services.settings import Settings
from services.settings.checks import check_grpo
from services.settings.section import Section

SHIPPED = bundled("configs/clusters")

Basis = Literal["assumption", "datasheet", "benchmark", "derived", "measured", "settings"]
"""`benchmark`: by a command of this project, on the machine that the source names; `measured`: in
the run that the source names."""


class Given(Section):
    """A number and what it rests on.

    Example: `{ value = 312e12, basis = "datasheet", source = "NVIDIA A100: bfloat16, dense" }`
    """

    value: float = Field(ge=0)
    basis: Basis
    source: str = Field(min_length=1)


class Gpus(Section):
    """The GPUs."""

    count: int = Field(ge=1)
    per_node: int = Field(ge=1)
    kind: str
    memory_gib: float = Field(gt=0)


class Hardware(Section):
    """What parts of it can do, as the derivation of rates (`derive`) takes it."""

    flops: Given
    """Operations of a GPU in bfloat16, a second."""
    memory_bytes_per_s: Given
    """The pace of a GPU's own memory."""
    link_bytes_per_s: Given
    """The pace from one GPU to GPUs of other nodes."""
    host_bytes_per_s: Given
    """The pace from rank 0's host to the network."""
    file_bytes_per_s: Given
    """The pace of the shared file system for one reader or writer."""
    files_bytes_per_s: Given
    """The pace of the shared file system for all together."""
    training_share: Given
    """The share of `flops` that a training step makes use of (MFU)."""
    prefill_share: Given
    """The share of `flops` that work on prompts, and on many sequences at a time, makes use of."""
    decode_share: Given
    """The share of `memory_bytes_per_s` that a decoding step makes use of."""
    decode_step_s: Given
    """Seconds of a decoding step beside reading weights: launching it, scheduling."""
    decode_sequence_s: Given
    """Seconds of a decoding step for each sequence beside its arithmetic: sampling, text."""
    step_s: Given
    """Seconds of a training step, whatever its tokens: optimizer, launching."""


class Workload(Section):
    """What images and answers are like, where no earlier run says it."""

    prompt_text_tokens: Given
    """Tokens of the instruction."""
    length_mean: Given
    """Tokens of a completion, before `sampling.max_tokens` cuts it."""
    length_sigma: Given
    """The standard deviation of the logarithm of that length."""
    num_images: Given
    """Images of an epoch, where `data.train` cannot be opened here."""


class Cluster(Section):
    """One file."""

    gpus: Gpus
    hardware: Hardware
    workload: Workload
    rates: dict[str, Given] = Field(default_factory=dict)
    """Over what would be derived: names as `sgg-rl plan` prints them."""


def load_cluster(name: str) -> Cluster:
    """A shipped cluster by its name, or a file.

    Raises:
        SettingsError: There is none, or it cannot be used.
    """
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise SettingsError(
            f"--cluster {name}: there is no such cluster: name one that ships ({shipped}), or a "
            ".toml of yours (docs/sizing.md)"
        )
    return Cluster.read(path, wrong="is not usable")


def check_plan(settings: Settings, cluster: Cluster) -> None:
    """Refuse what cannot be planned, before what takes seconds to import.

    Raises:
        SettingsError: Settings do not fit together or to the cluster, or there is no such model.
    """
    data = settings.data
    check_instruction(data.template, data.vocabulary, data.notation)
    check_grpo(settings)
    size = settings.rollout.tensor_parallel_size
    if size > cluster.gpus.per_node:
        raise SettingsError(
            f"rollout.tensor_parallel_size is {size}, and a node has {cluster.gpus.per_node} GPUs: "
            "a server is on one node"
        )
    if cluster.gpus.count < 2 and not settings.weights.traits.same_gpu:
        raise SettingsError(
            "one GPU is shared by trainer and sampler: set weights.transport = 'ipc'"
        )
    path = settings.model.path
    if not Path(path).exists() and not is_hub_name(path):
        raise SettingsError(
            f"model.path: there is no {path}: if SFT makes it, plan with the model that it starts "
            "from (--set model.path=Qwen/Qwen2-VL-2B-Instruct)"
        )
