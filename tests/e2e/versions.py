"""Versions of a policy whose weights transformers holds: files, manifests, adapters."""

from collections.abc import Mapping
from pathlib import Path

import torch
from blake3 import blake3
from safetensors.torch import save_file

from services.models.families import as_published
from services.schemas.weights import (
    AdapterConfig,
    CommitRequest,
    StageRequest,
    TensorEntry,
    Transport,
    Version,
    WeightManifest,
    manifest_checksum,
)
from services.settings import Settings
from tests.e2e.oracle import Oracle
from weight_sync.transports.files import FileSender, private_folder
from weight_sync.transports.sender import CheckedManifest
from weight_sync.transports.shm import shm_file

Tensors = Mapping[str, torch.Tensor]


def perturbed(settings: Settings, part: str, seed: int, noise: float = 0.03) -> Oracle:
    """An oracle whose parameters with `part` in their name are others."""
    oracle = Oracle(settings)
    perturb(oracle, part, seed, noise)
    return oracle


def perturb(oracle: Oracle, part: str, seed: int, noise: float = 0.03) -> None:
    """Change its parameters with `part` in their name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in oracle.model.named_parameters():
            if part in name:
                parameter += noise * torch.randn(parameter.shape, generator=generator)


def write_shm(
    run: str, oracle: Oracle, policy_version: int, *, vision_trained: bool, part: str = ""
) -> WeightManifest:
    """A version in shared memory, of the parameters with `part` in their name."""
    parameters = oracle.model.named_parameters()
    tensors = {n: as_published(n, p.detach()).contiguous() for n, p in parameters if part in n}
    file = shm_file(run, Version(1, policy_version))
    for folder in (file.parent.parent, file.parent):  # the user's, the run's
        private_folder(folder)
    save_file(tensors, file)
    manifest = manifest_of(tensors, policy_version, vision_trained=vision_trained)
    return manifest.model_copy(update={"partial": bool(part)})


def prepared(
    sender: FileSender,
    oracle: Oracle,
    policy_version: int,
    last: CheckedManifest | None = None,
) -> CheckedManifest:
    """A version as the trainer's sender makes it; with `last`, the one before, as a delta."""
    parameters = oracle.model.named_parameters()
    tensors = ((n, as_published(n, p.detach()).clone()) for n, p in parameters)
    base = last.as_base if last is not None else None
    made = sender.prepare(tensors, Version(1, policy_version), base)
    manifest = WeightManifest(
        policy_version=policy_version,
        incarnation=1,
        step=policy_version,
        vision_trained=True,
        algorithm="blake3",
        tensors=made.tensors,
        delta=made.base,
    )
    return CheckedManifest.of(manifest)


def manifest_of(
    tensors: Tensors,
    policy_version: int,
    *,
    vision_trained: bool = False,
    adapter: AdapterConfig | None = None,
) -> WeightManifest:
    return WeightManifest(
        policy_version=policy_version,
        incarnation=1,
        step=policy_version,
        vision_trained=vision_trained,
        algorithm="blake3",
        tensors={name: _entry(tensor) for name, tensor in tensors.items()},
        adapter=adapter,
    )


def stage_of(manifest: WeightManifest, transport: Transport = "shm") -> StageRequest:
    checksum = manifest_checksum(manifest)
    return StageRequest(transport=transport, manifest=manifest, checksum=checksum)


def commit_of(manifest: WeightManifest) -> CommitRequest:
    return CommitRequest(
        policy_version=manifest.policy_version, checksum=manifest_checksum(manifest)
    )


def random_adapter(
    oracle: Oracle, rank: int, seed: int, scale: float = 0.1
) -> dict[str, torch.Tensor]:
    """By PEFT's names, of all projections of the language model."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in oracle.model.named_parameters():
        if "language_model" in name and name.endswith("proj.weight"):
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = parameter.shape
            tensors[f"{layer}.lora_A.weight"] = scale * torch.randn(
                rank, inputs, generator=generator
            )
            tensors[f"{layer}.lora_B.weight"] = scale * torch.randn(
                outputs, rank, generator=generator
            )
    return tensors


def merge(oracle: Oracle, adapter: Tensors, config: AdapterConfig) -> None:
    """Add an adapter to the weights that it is of."""
    parameters = dict(oracle.model.named_parameters())
    with torch.no_grad():
        for name, lora_a in adapter.items():
            if ".lora_A." in name:
                lora_b = adapter[name.replace(".lora_A.", ".lora_B.")]
                layer = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
                parameters[layer] += config.alpha / config.rank * lora_b @ lora_a


def adapter_file(folder: Path, adapter: Tensors) -> bytes:
    """The safetensors file of an adapter."""
    path = folder / "adapter_model.safetensors"
    save_file(dict(adapter), path)
    return path.read_bytes()


def _entry(tensor: torch.Tensor) -> TensorEntry:
    digest = blake3(tensor.numpy().tobytes()).hexdigest()
    return TensorEntry(shape=list(tensor.shape), dtype="float32", digest=digest)
