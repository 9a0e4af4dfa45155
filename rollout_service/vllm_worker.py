"""What runs inside vLLM's worker processes: how a version's tensors get into the model.

vLLM imports this module there, as the class of its worker extension; importing it registers the
transfer engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform

BACKEND = "sgg-rl"
"""Name under which vLLM finds the transfer engine."""


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to agree on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the verified version lies."""

    file: str


class FileTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):  # type: ignore[misc]
    """Loads a safetensors file of this host, by vLLM's layerwise reload as its own engines do."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Take the layers' tensors away, so that each is built anew from what comes."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Hand every tensor to the model's loader; the file is mapped, not read at once."""
        with safe_open(update_info.file, framework="pt") as tensors:
            names = list(tensors.keys())
            self.model.load_weights((name, tensors.get_tensor(name)) for name in names)

    def finish_weight_update(self) -> None:
        """Process what was loaded, in place."""
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            self._repack_output_heads()

    def _repack_output_heads(self) -> None:
        """A head tied to the embedding gets no weights of its own: vLLM 0.32 leaves it as it was.

        On GPU it reads the embedding's tensor. On CPU it has a packed copy, which would stay old.
        """
        for layer in self.model.modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Nothing to give back."""


class WorkerExtension:
    """Methods that vLLM's workers gain; importing this module registers the transfer engine."""

    def sgg_model_names(self, names: list[str]) -> Sequence[str | None]:
        """Checkpoint names as this model's; None for tensors that it does not load."""
        mapper = getattr(self.get_model(), "hf_to_vllm_mapper", None)  # type: ignore[attr-defined]
        return [mapper.map_name(name) for name in names] if mapper else names


WeightTransferEngineFactory.register_engine(BACKEND, FileTransferEngine)
