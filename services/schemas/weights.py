"""Weight updates: what a version of the policy consists of, and the policy a server serves."""

from typing import Annotated, Literal

from pydantic import Field

from services.schemas.common import Message, Name, Sha256

Transport = Literal["shm"]
PolicyState = Literal["starting", "ready", "updating", "draining", "quarantined"]


class TensorEntry(Message):
    """One tensor of a version.

    Example: `{"shape": [128, 128], "dtype": "float32", "sha256": "9f86…0a08"}`
    """

    shape: list[Annotated[int, Field(ge=0)]]
    dtype: Literal["float32", "bfloat16", "float16"]
    sha256: Sha256
    """Of the tensor's bytes in row-major order."""


class WeightManifest(Message):
    """Names, shapes, dtypes and digests of every tensor of a version.

    Example: `tests/contract/golden/stage_request.json`
    """

    policy_version: int = Field(ge=0)
    incarnation: int = Field(ge=0)
    step: int = Field(ge=0)
    vision_trained: bool
    """Whether the vision tower changed: then cached image embeddings are stale."""
    tensors: dict[str, TensorEntry] = Field(min_length=1)


class StageRequest(Message):
    """Body of `POST /v1/weights/stage`: which version, never where it lies."""

    transport: Transport = "shm"
    manifest: WeightManifest
    checksum: Sha256
    """Of the manifest (`services.weights.manifest_checksum`)."""


class CommitRequest(Message):
    """Body of `POST /v1/weights/commit` and `/abort`."""

    policy_version: int = Field(ge=0)
    checksum: Sha256


class PolicyInfo(Message):
    """Answer of `GET /v1/policy` and of every weight call.

    Example: `tests/contract/golden/policy_info.json`
    """

    server_id: Name
    model: str
    dtype: str
    policy_version: int = Field(ge=0)
    incarnation: int = Field(ge=0)
    checksum: Sha256 | None
    """Of the serving manifest; null for the weights that the server started with."""
    staged_version: int | None = None
    state: PolicyState


class ServerRecord(Message):
    """A rollout server's entry in the `servers` hash, renewed by its heartbeat."""

    server_id: Name
    url: str
    host: str
    gpu: str | None
    """UUID of its GPU; null on CPU."""
    state: PolicyState
    policy_version: int = Field(ge=0)
    tokens_per_s: float = Field(ge=0)
    groups_done: int = Field(ge=0)
    last_error: str | None = None


class PolicyRecord(Message):
    """The version that every server should serve, and how late joiners get it."""

    policy_version: int = Field(ge=0)
    incarnation: int = Field(ge=0)
    checksum: Sha256
    transport: Transport
