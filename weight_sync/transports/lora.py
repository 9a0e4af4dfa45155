"""`lora`: as `http`, for an adapter alone (arXiv 2106.09685)."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from services.errors import InvalidInputError
from services.schemas.weights import AdapterConfig, StageRequest, WeightManifest
from weight_sync.engine import Shape, Staged
from weight_sync.transports.files import StagedFile
from weight_sync.transports.http import HttpSender
from weight_sync.transports.receiver import Receiver

_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
"""PEFT's name of one half of a layer's adapter."""


class LoraSender(HttpSender):
    """Tensors by PEFT's names, such as `base_model.model.….q_proj.lora_A.weight`."""

    name = "lora"


class StagedAdapter(Staged):
    """A folder in PEFT's layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, file: StagedFile, manifest: WeightManifest) -> None:
        """Write the adapter, whose tensors are in a verified file."""
        assert manifest.adapter is not None  # `StageRequest` checks it
        shutil.copyfile(file.path, self.folder / "adapter_model.safetensors")
        write_config(self.folder, manifest.adapter, manifest.tensors)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class LoraReceiver(Receiver):
    """Puts a verified upload into a folder of its own."""

    async def check(self, manifest: WeightManifest) -> None:
        """See `Receiver.check`."""
        adapter, most = manifest.adapter, self._settings.rollout.max_lora_rank
        assert adapter is not None  # `StageRequest` checks it
        if adapter.rank > most:
            raise InvalidInputError(
                f"the adapter's rank is {adapter.rank}; rollout.max_lora_rank is {most}"
            )
        await self._engine.check_adapter(adapted_layers(manifest.shapes, adapter))

    async def stage(self, request: StageRequest) -> StagedAdapter:
        """See `Receiver.stage`."""
        file, spool = await self._uploads.stage(request), self._uploads.spool
        try:
            with spool.writing():
                staged = StagedAdapter(spool.new_folder("adapter-"))
                try:
                    await asyncio.to_thread(staged.fill, file, request.manifest)
                except BaseException:
                    staged.close()
                    raise
                return staged
        finally:
            file.close()


def write_config(folder: Path, adapter: AdapterConfig, names: Iterable[str]) -> None:
    """PEFT's description of an adapter.

    Args:
        folder: Where its `adapter_model.safetensors` lies.
        adapter: Rank and scale.
        names: Its tensors', such as `base_model.model.….q_proj.lora_A.weight`.
    """
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    config = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": modules,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def adapted_layers(tensors: Mapping[str, Shape], adapter: AdapterConfig) -> dict[str, Shape]:
    """What an adapter is added to.

    Args:
        tensors: The adapter's: `….lora_A.weight` of shape [rank, inputs] and `….lora_B.weight` of
            shape [outputs, rank] for each layer.
        adapter: Its rank.

    Returns:
        Names of weights, such as `….q_proj.weight`, to their shape [outputs, inputs].

    Raises:
        InvalidInputError: A half is missing, has another rank, or is no half of an adapter.
    """
    halves: dict[str, dict[str, Shape]] = {}
    for name, shape in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or len(shape) != 2:
            raise InvalidInputError(f"{name} {shape} is not half of a layer's adapter")
        halves.setdefault(match["layer"], {})[match["half"]] = shape
    layers: dict[str, Shape] = {}
    for layer, found in halves.items():
        if len(found) < 2:
            raise InvalidInputError(f"{layer} has lora_{next(iter(found))} alone")
        (rank, inputs), (outputs, other_rank) = found["A"], found["B"]
        if {rank, other_rank} != {adapter.rank}:
            raise InvalidInputError(
                f"{layer} has ranks {rank} and {other_rank}; the manifest says {adapter.rank}"
            )
        layers[f"{layer}.weight"] = (outputs, inputs)
    return layers
