"""A worker extension of tests: counts how often images are encoded, and fails where it is told."""

from collections.abc import Iterable
from typing import Any

from vllm.model_executor.layers.logits_processor import LogitsProcessor

from rollout_service.vllm import worker as vllm_worker

FAIL_AFTER_TENSORS = 20
"""In the middle of a layer: its query is loaded, its key is not."""


class ProbingExtension(vllm_worker.WorkerExtension):
    """What a worker gains beside the product's own."""

    num_encodings = 0

    def probe_start(self) -> None:
        """Count from now on."""
        self.get_model().visual.register_forward_pre_hook(self._count)  # type: ignore[attr-defined]

    def probe_head_dtypes(self) -> list[str]:
        """The dtypes of what makes logits."""
        modules = self.get_model().modules()  # type: ignore[attr-defined]
        return [str(one.head_dtype) for one in modules if isinstance(one, LogitsProcessor)]

    def probe_encodings(self) -> int:
        """Runs of the vision tower."""
        return self.num_encodings

    def probe_fail_loads(self, times: int) -> None:
        """The next loads of the first worker end in the middle of a layer."""
        if self.rank:  # type: ignore[attr-defined]
            return
        model = self.get_model()  # type: ignore[attr-defined]
        load = type(model).load_weights
        left = times

        def load_weights(weights: Iterable[tuple[str, Any]]) -> Any:
            nonlocal left
            if not left:
                return load(model, weights)
            left -= 1
            return load(model, _cut_short(weights))

        model.load_weights = load_weights

    def probe_fail_finish(self) -> None:
        """The last worker's next finish fails once everything is loaded."""
        if self.rank < self.parallel_config.world_size - 1:  # type: ignore[attr-defined]
            return
        engine = self.weight_transfer_engine  # type: ignore[attr-defined]

        def fail() -> None:
            del engine.finish_weight_update  # the class's own is back
            raise RuntimeError("no memory to finish with")

        engine.finish_weight_update = fail

    def _count(self, *_: Any) -> None:
        self.num_encodings += 1


def _cut_short(weights: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    for number, item in enumerate(weights):
        if number == FAIL_AFTER_TENSORS:
            raise RuntimeError("no memory to load with")
        yield item
