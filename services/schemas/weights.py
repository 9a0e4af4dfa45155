"""Weight updates: what a version of the policy consists of, and the policy a server serves."""

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, model_validator

from services.schemas.common import Count, Message, ModelRunner, Name, Sha256
from services.schemas.versions import Versioned


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportTraits:
    """What settings, checks, planning and servers need to know of a transport."""

    through_file: bool = True
    """The bytes lie in a file on the server, and are verified, before the commit. Without a file
    they go from GPU to GPU while servers commit."""
    servers_fetch: bool = False
    """A server finds the bytes by itself, from the policy record alone."""
    in_run_folder: bool = False
    """The last versions lie in the run's folder, which all hosts see."""
    same_host: bool = False
    """It reaches servers on rank 0's own host only, by way of its shared memory."""
    same_gpu: bool = False
    """It reaches a server on a rank's own GPU only."""
    joins_group: bool = False
    """Servers join a NCCL group while they stage: each needs a `Rendezvous` and another GPU."""
    adapter_alone: bool = False
    """It sends a LoRA adapter over the weights that the server started with."""

    @property
    def takes_deltas(self) -> bool:
        """Whether a version can come as what changed since the one before."""
        return self.through_file and not self.adapter_alone


TRANSPORTS = {
    "shm": TransportTraits(servers_fetch=True, same_host=True),
    "disk": TransportTraits(servers_fetch=True, in_run_folder=True),
    "http": TransportTraits(),
    "nccl": TransportTraits(through_file=False, joins_group=True),
    "ipc": TransportTraits(through_file=False, same_gpu=True),
    "lora": TransportTraits(adapter_alone=True),
}
"""All transports. Both ends of each are in its file, `weight_sync/NAME.py`, which is imported
when it is first used."""

if TYPE_CHECKING:
    Transport = str
else:
    Transport = Literal[tuple(TRANSPORTS)]
PolicyState = Literal["starting", "ready", "updating", "draining", "quarantined"]


Encoding = Literal["whole", "delta"]
"""How a version's file is written: all elements, or those that changed since the version before."""
DigestAlgorithm = Literal["sha256", "blake3"]
"""How a tensor's bytes are digested, to 32 bytes. `weight_sync.digests` has both."""

MAX_RANK = 8
"""Dimensions of a tensor."""
MAX_DIMENSION = 2**48
"""Length of one: sizes and offsets are checked against it before they are multiplied."""
_MAX_SHOWN = 200
"""Characters of a tensor's name in a message."""
_URL = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})/?")


def _checked_url(url: str) -> str:
    match = _URL.fullmatch(url)
    if match is None or int(match[2]) > 65_535:
        raise ValueError("it is no address of a server: write http://host:port")
    return url


ServerUrl = Annotated[str, AfterValidator(_checked_url)]


def _known_algorithm(name: Any) -> Any:
    known = get_args(DigestAlgorithm)
    if name not in known:
        raise ValueError(
            f"this program knows digests by {' and '.join(known)}, and not by {name!r:.40}: it is "
            "of an earlier release than the trainer; update it"
        )
    return name


def shown(name: str) -> str:
    """A tensor's name as it may stand in a message."""
    return name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the policy. A later one is larger; the checksum has no part in that.

    Step numbers repeat after a rollback, so the trainer's incarnation counts first.

    Example: `Version(incarnation=2, policy_version=41, checksum="9f86…0a08")`
    """

    incarnation: int = 0
    policy_version: int = 0
    checksum: str | None = None
    """The manifest's; None for the weights that the model came with."""

    def __str__(self) -> str:
        return f"version {self.policy_version} of incarnation {self.incarnation}"

    def __lt__(self, other: "Version") -> bool:
        return self.order < other.order

    @property
    def order(self) -> tuple[int, int]:
        """What versions are compared by."""
        return self.incarnation, self.policy_version

    @property
    def file_name(self) -> str:
        """The safetensors file's name, wherever it lies."""
        return f"{self.incarnation}-{self.policy_version}.safetensors"


class TensorEntry(Message):
    """One tensor of a version.

    Example: `{"shape": [128, 128], "dtype": "float32", "digest": "9f86…0a08"}`
    """

    shape: list[Annotated[int, Field(ge=0, le=MAX_DIMENSION)]] = Field(max_length=MAX_RANK)
    dtype: Literal["float32", "bfloat16", "float16"]
    digest: Sha256 | None = Field(default=None, validation_alias=AliasChoices("digest", "sha256"))
    """By the manifest's `algorithm` over its bytes in row-major order, in hexadecimal digits; null
    only where they never lie in a file. Releases before `algorithm` call it `sha256`."""


class AdapterConfig(Message):
    """What a LoRA adapter's tensors do not say themselves (arXiv 2106.09685, section 4.1).

    Example: `{"rank": 8, "alpha": 16.0}`
    """

    rank: int = Field(ge=1, le=512)
    alpha: float = Field(gt=0)
    """The adapter's product is scaled by alpha / rank."""


class DeltaBase(Message):
    """What a version's delta is to be applied to: the version before, and how that came.

    Example: `{"checksum": "9f86…0a08", "chain": [50, 51, 52]}`, of version 53
    """

    checksum: Sha256
    """The manifest's of the version before."""
    digest: Sha256 | None = None
    """BLAKE3 of the delta's file. A server that has the version before, verified, compares it and
    not those of the result, which follow; with null it reads the result."""
    chain: list[Count] = Field(min_length=1, max_length=1000)
    """Numbers of versions of the same incarnation, rising: the last one that was written whole, and
    each one since then, which is a delta of the one before it. The last is the base."""

    @model_validator(mode="after")
    def _rising(self) -> "DeltaBase":
        if any(a >= b for a, b in pairwise(self.chain)):
            raise ValueError(f"the chain's versions do not rise: {self.chain!r:.200}")
        return self


class WeightManifest(Message):
    """Names, shapes, dtypes and digests of every tensor of a version.

    Example: `tests/contract/golden/stage_request.json`
    """

    policy_version: Count
    incarnation: Count
    step: Count
    vision_trained: bool
    """Whether the vision tower changed: then cached image embeddings are stale."""
    partial: bool = False
    """Whether the tensors are a part of the model: all others are as the server started with them.
    """
    algorithm: Annotated[DigestAlgorithm, BeforeValidator(_known_algorithm)] = "sha256"
    """What made the tensors' digests; a manifest of an earlier release does not say it."""
    tensors: dict[str, TensorEntry] = Field(min_length=1)
    adapter: AdapterConfig | None = None
    """Set where the tensors are a LoRA adapter over the weights that the server started with."""
    delta: DeltaBase | None = None
    """Set where the version's file is a delta. Tensors and digests are those of the result, and a
    server takes a whole file of the version by this manifest too."""

    @model_validator(mode="after")
    def _after_its_base(self) -> "WeightManifest":
        if self.delta is not None and self.delta.chain[-1] >= self.policy_version:
            raise ValueError(
                f"delta.chain ends with {self.delta.chain[-1]}: it ends before the version"
            )
        return self

    @property
    def version(self) -> Version:
        """Which one it describes, without its own checksum."""
        return Version(self.incarnation, self.policy_version)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, by name."""
        return {name: tuple(entry.shape) for name, entry in self.tensors.items()}


def manifest_checksum(manifest: WeightManifest) -> str:
    """sha256 of the manifest as canonical JSON.

    A whole version, and one with digests by sha256, is put as the releases wrote it that knew no
    other.
    """
    tree = manifest.model_dump(mode="json")
    if manifest.delta is None:
        del tree["delta"]
    if manifest.algorithm == "sha256":
        del tree["algorithm"]
        for entry in tree["tensors"].values():
            entry["sha256"] = entry.pop("digest")
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Rendezvous(Message):
    """The NCCL group in which the trainer broadcasts (`nccl`); as secret as the admin token.

    It travels inside a checked request, so that no port is open for it and nothing is unpickled.

    Example: `{"unique_id": "ChQ…AA=", "world_size": 5, "rank": 3}`
    """

    unique_id: str = Field(pattern=r"^[A-Za-z0-9+/]{171}=$")
    """The 128 bytes of `ncclGetUniqueId`, base64. The same id is the same group."""
    world_size: int = Field(ge=2, lt=2**31)
    """The trainer, which is rank 0, and every GPU of every server."""
    rank: int = Field(ge=1, lt=2**31)
    """That of the server's first GPU; its others follow."""


class IpcHandle(Message):
    """Where a tensor lies in a GPU's memory: `cudaIpcGetMemHandle`'s answer, as torch shares it."""

    gpu: Name
    """UUID of the GPU."""
    stride: list[Count]
    offset: Count
    """Where the tensor begins in its storage, in elements."""
    memory: str
    """The handle, base64."""
    storage_bytes: Count
    storage_offset_bytes: Count
    ref_counter: str
    """Handle of the counter that tells the trainer when the memory is free again, base64."""
    ref_counter_offset: Count
    event: str
    """Handle of the event after which the bytes are there, base64."""
    event_sync_required: bool


class RankShare(Message):
    """A version's tensors on one rank's GPU, for the rollout server there to read (`ipc`).

    Example: `{"gpu": "3f1c…", "handles": {"lm_head.weight": {…}}}`
    """

    gpu: str
    """UUID, without NVIDIA's `GPU-`."""
    handles: dict[str, IpcHandle]
    """By tensor name."""


class StageRequest(Versioned):
    """Body of `POST /v1/weights/stage`: which version, never where it lies."""

    transport: Transport = "shm"
    manifest: WeightManifest
    checksum: Sha256
    """The manifest's (`manifest_checksum`)."""
    rendezvous: Rendezvous | None = None
    """`nccl` only."""

    @property
    def version(self) -> Version:
        """The version to stage."""
        return Version(self.manifest.incarnation, self.manifest.policy_version, self.checksum)

    @model_validator(mode="after")
    def _complete(self) -> "StageRequest":
        bare = [n for n, entry in self.manifest.tensors.items() if entry.digest is None]
        traits = TRANSPORTS[self.transport]
        if bare and traits.through_file:
            raise ValueError(f"{len(bare)} tensors have no digest: {shown(bare[0])}, …")
        if (self.rendezvous is not None) != traits.joins_group:
            raise ValueError("nccl, and no other transport, needs a rendezvous")
        if (self.manifest.adapter is not None) != traits.adapter_alone:
            raise ValueError("lora, and no other transport, needs the manifest's adapter")
        if self.manifest.delta is not None and not traits.takes_deltas:
            raise ValueError(f"{self.transport} takes whole versions alone, and this is a delta")
        return self


class CommitRequest(Versioned):
    """Body of `POST /v1/weights/commit` and `/abort`."""

    policy_version: Count
    checksum: Sha256
    ipc_handles: dict[str, IpcHandle] | None = None
    """`ipc` only: by tensor name; the memory stays as it is until the commit is answered."""
    more_ipc_handles: list[dict[str, IpcHandle]] = Field(default_factory=list)
    """The same on each other GPU of a server that has several."""

    def names(self, version: Version) -> bool:
        """Whether it is about that version, whose checksum covers its incarnation."""
        return (version.policy_version, version.checksum) == (self.policy_version, self.checksum)


class PassOnRequest(Versioned):
    """Body of `POST /v1/weights/pass-on`: gives a version that was uploaded here to another server.

    Example: `tests/contract/golden/pass_on_request.json`
    """

    checksum: Sha256
    """The manifest's with which the version was staged here."""
    url: ServerUrl
    """The other server's `rollout.url`. It has to prove itself before anything is sent to it."""
    whole: bool = False
    """Whether it needs the version whole, where a delta of it was sent here."""


class PolicyInfo(Versioned):
    """Answer of `GET /v1/policy` and of every weight call.

    Example: `tests/contract/golden/policy_info.json`
    """

    server_id: Name
    model: str
    dtype: str
    policy_version: Count
    incarnation: Count
    checksum: Sha256 | None
    """The serving manifest's; null for the weights that the server started with."""
    staged_version: Count | None = None
    state: PolicyState
    model_runner: ModelRunner | None = None
    """Which one vLLM uses; null before the model is loaded, and where another engine samples."""

    @property
    def version(self) -> Version:
        """The version that is served."""
        return Version(self.incarnation, self.policy_version, self.checksum)


class ServerProof(Message):
    """Answer of `GET /v1/proof`: see `services.http.proof`."""

    proofs: list[Sha256] = Field(max_length=8)
    """One for each token that the server asks for, in hex."""


class ServerRecord(Versioned):
    """A rollout server's entry in the `servers` hash, renewed by its heartbeat."""

    server_id: Name
    url: ServerUrl
    """`http://host:port`, the server's `rollout.url`."""
    host: str
    gpu: str | None
    """UUID of its first GPU; null on CPU."""
    gpus: list[str] = Field(default_factory=list)
    """UUIDs of all of them, one for each part of its model; empty on CPU."""
    state: PolicyState
    model_runner: ModelRunner | None = None
    """As in `PolicyInfo`."""
    policy_version: Count
    tokens_per_s: float = Field(ge=0)
    groups_done: Count
    image_store: str | None = None
    """Sign of the image store that it sees: whether that is the trainer's."""
    groups_in_flight: Count = 0
    """Being sampled now, from the queue and over HTTP."""
    groups_limit: Count = 0
    """Groups of the queue that it samples at the same time."""
    last_error: str | None = None
    last_error_s: float | None = Field(default=None, ge=0)
    """Seconds from that error to this heartbeat."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_gpu(cls, record: object) -> object:
        """A record from before `gpus` names the server's one GPU alone."""
        if isinstance(record, dict) and record.get("gpu") and "gpus" not in record:
            return {**record, "gpus": [record["gpu"]]}
        return record


class PolicyRecord(Versioned):
    """The version that every server should serve, and how late joiners get it."""

    policy_version: Count
    incarnation: Count
    checksum: Sha256
    transport: Transport

    @property
    def version(self) -> Version:
        """The version to serve."""
        return Version(self.incarnation, self.policy_version, self.checksum)
