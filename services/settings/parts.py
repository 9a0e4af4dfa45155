"""Settings of a run's services, their machines and their tokens: `[redis]` to `[telemetry]`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from services.host.addresses import is_host_pattern
from services.schemas.common import ModelRunner
from services.schemas.weights import TRANSPORTS, Encoding, Transport, TransportTraits
from services.settings.secrets import read_secret
from services.settings.section import LocalPath, PathOrName, Section


class RedisSettings(Section):
    """The queue's server."""

    url: str = "redis://127.0.0.1:6379/0"
    """Where it listens, and how others reach it: `redis://host:port/database`, or `rediss://`,
    `unix://`, `redis+sentinel://` for a server of one's own."""
    password_file: LocalPath | None = None
    """Its content is the password, of mode 0600. Beyond this machine Redis is not served without. A
    user stands in the url: `redis://user@host:6379/0`."""
    lease_s: float = Field(default=60.0, gt=0)
    """A claimed group whose server is silent for this long goes to another."""
    max_deliveries: int = Field(default=5, ge=1)
    """Failed attempts after which a group is put aside as dead."""

    @property
    def password(self) -> str | None:
        """The file's content; None where there is no file."""
        return None if self.password_file is None else read_secret(self.password_file)


class RewardSettings(Section):
    """The reward service and what it is asked for."""

    url: str = "http://127.0.0.1:8100"
    """Where it listens, and how others reach it."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes behind the URL; one scores on one core."""
    similarity_folder: LocalPath | None = None
    """Tables that a rubric may name as its similarity, `*.json`."""
    embedding_models: list[PathOrName] = Field(default_factory=list)
    """Models that a rubric may name as its similarity: folders, or hub names in the local cache."""
    rubric: str | dict[str, Any] = "balanced"
    """Its name, or in full: `docs/rewards.md`."""
    terms: list[PathOrName] = Field(default_factory=list)
    """Terms of one's own that the rubric may weigh: `FILE.py:FUNCTION` or `MODULE:FUNCTION`."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for one answer; then the trainer asks again, for fewer groups at a time."""


class RolloutSettings(Section):
    """A rollout server."""

    url: str = "http://127.0.0.1:8200"
    """Where it listens, and how others reach it."""
    engine: Literal["vllm", "fake"] = "vllm"
    """`fake` answers from a script, without a model: to try queues and load on any machine."""
    model_runner: ModelRunner = "v1"
    """vLLM's, whatever `VLLM_USE_V2_MODEL_RUNNER` says. All that is tested on CPUs is tested with
    `v1`; `v2` is vLLM's default on GPUs, and runs there only."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs, or processes on a CPU, that one server spreads its model over. It has to divide the
    model's heads."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Completions sampled at the same time."""
    max_model_len: int = Field(default=3072, ge=16)
    """Prompt and completion together, in tokens."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """CPU only: memory of the KV cache of each process."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """GPU only: share of its memory that vLLM may use. Where a rank of the trainer is on the same
    GPU, the rank gets the rest."""
    enforce_eager: bool = False
    """Skip graph capture: starts faster, samples slower."""
    groups_in_flight: int = Field(default=8, ge=1)
    """Groups that one server holds leases on."""
    max_images_per_prompt: int = Field(default=1, ge=1, le=16)
    """vLLM keeps memory free for that many of the largest size."""
    adapters: dict[str, LocalPath] = Field(default_factory=dict)
    """LoRA adapters that requests may name: folders in PEFT's layout."""
    max_lora_rank: int = Field(default=16, ge=1, le=512)
    """The highest rank of those adapters, and of the one that the `lora` transport updates."""
    fake_tokens_per_s: float = Field(default=2000.0, gt=0)
    """Fake engine only: its pace, all completions together."""


class MonitorSettings(Section):
    """What watches a run for Prometheus."""

    url: str = "http://127.0.0.1:8400"
    """Where it listens, and how others reach it."""
    console: bool = True
    """Serve the console's pages there too, and start the monitor with `sgg-rl run` and `demo`:
    `docs/console.md`."""


class WeightSettings(Section):
    """How a new policy gets from the trainer to the rollout servers."""

    transport: Transport = "shm"
    """`shm` on one host; `disk` on a file system that all share; `http` where nothing is shared;
    `nccl` from GPU to GPU; `ipc` on one GPU; `lora` for adapters. `docs/rollout.md` compares them.
    """
    encoding: Encoding = "whole"
    """`delta` sends what changed since the version before, over `shm`, `disk` or `http`, wherever
    that takes fewer bytes. It pays over networks, in bfloat16 and at small learning rates."""

    @model_validator(mode="after")
    def _deltas_lie_in_files(self) -> "WeightSettings":
        if self.encoding == "delta" and not self.traits.takes_deltas:
            raise ValueError(
                f"weights.encoding = 'delta' and weights.transport = '{self.transport}': "
                f"{self.transport} sends whole versions alone"
                f"{', and of an adapter every element changes' * self.traits.adapter_alone}; set "
                "weights.encoding = 'whole', or the transport to shm, disk or http"
            )
        return self

    @property
    def traits(self) -> TransportTraits:
        """What that transport is like."""
        return TRANSPORTS[self.transport]

    @property
    def written_together(self) -> bool:
        """Whether the trainer's ranks write a version together, as far as they see its file.

        Rank 0 writes alone what no server reads by itself, and deltas, which it finds in a copy of
        its own.
        """
        return self.traits.servers_fetch and self.encoding == "whole"


class ClusterSettings(Section):
    """The GPUs of a run, for `sgg-rl run` and `train --dry-run`."""

    gpu_memory_gib: float | None = Field(default=None, gt=0)
    """The memory of each GPU."""
    num_rollout_servers: int = Field(default=1, ge=1)
    """Each on `rollout.tensor_parallel_size` GPUs of its own, or of ranks where both share them."""


class SecuritySettings(Section):
    """Tokens, in files of mode 0600. Without them services bind to loopback only."""

    data_token_file: LocalPath | None = None
    """Its content is asked for on sampling and scoring routes."""
    admin_token_file: LocalPath | None = None
    """Its content is asked for on weight routes."""
    rollout_hosts: list[str] | None = None
    """Hosts of rollout servers that clients take from Redis: networks such as `10.1.0.0/16`, names,
    or `*.` before a domain. Unset: any host whose server proves that it knows the token."""

    @model_validator(mode="after")
    def _consistent(self) -> "SecuritySettings":
        wrong = [text for text in self.rollout_hosts or () if not is_host_pattern(text)]
        if wrong:
            raise ValueError(
                f"rollout_hosts: {wrong[0]!r} is no host: write a network (10.1.0.0/16), a name, "
                "or *. before a domain"
            )
        return self


class TelemetrySettings(Section):
    """What is told to others about a run."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """OpenTelemetry collector that gets the services' spans, such as
    `http://127.0.0.1:4318`. Without it nothing is traced."""
