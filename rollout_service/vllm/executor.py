"""vLLM's executor for a model that several workers hold together: one on each GPU of a server."""

from typing import Any
from uuid import uuid4

from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc

from services.host.orphans import end_with_parent


class TensorParallelExecutor(MultiprocExecutor):  # type: ignore[misc]
    """vLLM's own, but a call that fails on some workers leaves nothing behind.

    vLLM 0.32 raises the first worker's failure and does not read the replies of the workers after
    it. Each later call would get the reply to the call before: a worker that has half of a version
    could be taken for one that has all of it.
    """

    def _init_executor(self) -> None:
        end_with_parent()  # its workers end with it, but they alone would
        super()._init_executor()

    def collective_rpc(self, *args: Any, **kwargs: Any) -> Any:
        """See vLLM's `Executor.collective_rpc`."""
        try:
            return super().collective_rpc(*args, **kwargs)
        except RuntimeError:  # a worker's; one that does not answer in time is not asked again
            if not self.is_failed:
                self._catch_up()
            raise

    def _catch_up(self) -> None:
        """Ask every worker for a mark, and read its replies up to that."""
        mark = uuid4().hex
        self.rpc_broadcast_mq.enqueue(("sgg_echo", (mark,), {}, None))
        for replies in self.response_mqs:
            while replies.dequeue() != (WorkerProc.ResponseStatus.SUCCESS, mark):
                pass
