"""vLLM's worker for CPUs, with seeds that work. vLLM loads this module in its worker process."""

from pathlib import Path
from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from services.host.environment import environment_value


class SeededModelRunner(CPUModelRunner):  # type: ignore[misc]
    """Keeps seeded generators away from samples that will be thrown away.

    Of a prompt that is prefilled in parts, every part is sampled from, and all samples but the last
    are discarded. vLLM 0.32 then winds the request's generator back by an offset, which generators
    on CPU do not have: the engine dies. Here such samples are drawn without the generator, so there
    is nothing to wind back, and a seed gives the same tokens whether the prompt was split or not.
    """

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discarded = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        rows = [int(row) for row in discarded if int(row) in generators]
        self._resting = {row: generators.pop(row) for row in rows}
        return super()._sample(*args, **kwargs)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._bookkeeping_sync(*args, **kwargs)
        self.input_batch.generators.update(self._resting)
        return result


class SeededWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's own worker around `SeededModelRunner`."""

    def init_device(self) -> None:
        """Make the runner."""
        super().init_device()
        _forget_shared_memory()
        if type(self.model_runner) is CPUModelRunner:
            # vLLM's worker names the class itself; to build a second one would take its memory too.
            self.model_runner.__class__ = SeededModelRunner


def _forget_shared_memory() -> None:
    """Take the names of what the workers of a server share in memory: all have it open by now.

    vLLM 0.32 takes them at an orderly end alone: a killed server would leave 8 MiB in /dev/shm.
    """
    name = environment_value("VLLM_DIST_IDENT")  # set by `CPUWorker.init_device`
    for file in Path("/dev/shm").glob(f"{name}-*cpushm*"):
        file.unlink(missing_ok=True)
