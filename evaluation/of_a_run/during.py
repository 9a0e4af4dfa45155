"""Held-out evaluation of the policy before, after and, with `evaluation.every`, while it trains."""

import asyncio
import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import cast

from evaluation.inference.progress import Progress
from evaluation.of_a_run.heldout import (
    Label,
    answering_versions,
    answers,
    check_version,
    heldout_samples,
    heldout_scores,
    keep_heldout,
)
from evaluation.of_a_run.progress_file import shown_progress
from evaluation.of_a_run.results import ResultsProcess
from scene_data.dataset import Sample
from services.errors import SggError, UnavailableError
from services.http.clients.rollout import RolloutClient
from services.http.loop_thread import LoopThread
from services.redis.registry import open_registry
from services.run_folder import EvaluationRow
from services.schemas.weights import Version
from services.settings import Settings
from services.waiting import WaitNotice
from trainer.records.evaluation import StepEvaluation

logger = logging.getLogger(__name__)

_SERVED_S = 120.0
"""Longest wait for servers to serve the version that is to be evaluated."""
_POLL_S = 0.25
_POLICY_S = 5.0


class DuringTraining(StepEvaluation):
    """Asks the run's own servers about held-out images, on a thread of its own.

    One evaluation at a time: one that is due while another goes on is skipped and counted. The
    first is of version 0 alone, for nothing is trained meanwhile; the last is of the last version.
    Both leave their answers in `heldout-before.jsonl` and `heldout-after.jsonl` of the run's folder
    and their scores in `summary.json`; those between leave theirs in `heldout-now.jsonl`. After
    each, plots and report are drawn again.
    """

    def __init__(self, settings: Settings) -> None:
        """Reads the images when it first evaluates."""
        self._settings = settings
        self._loop = LoopThread("evaluation")
        self._results = ResultsProcess(settings.run.files)
        self._running: Future[EvaluationRow] | None = None
        self._samples: list[Sample] = []
        self._num_skipped = 0
        self._num_failed = 0

    def start(self) -> list[EvaluationRow]:
        """See `StepEvaluation.start`."""
        found = self._now(0, "before")
        if found:
            self._results.begin()
        return found

    def begin(self, step: int) -> None:
        """See `StepEvaluation.begin`."""
        every = self._settings.evaluation.every
        if step == 0 or not every or step % every:
            return
        if self._running is not None:
            self._num_skipped += 1
            logger.warning("version %d is not evaluated: the last evaluation goes on", step)
            return
        self._running = self._loop.start(self._evaluate(step))

    def results(self) -> list[EvaluationRow]:
        """See `StepEvaluation.results`."""
        if self._running is None or not self._running.done():
            return []
        if found := self._taken(0.0):
            self._results.begin()
        return found

    def counts(self) -> dict[str, int]:
        """See `StepEvaluation.counts`."""
        return {
            "evaluations_skipped": self._num_skipped,
            "evaluations_failed": self._num_failed,
        }

    def finish(self, step: int) -> list[EvaluationRow]:
        """See `StepEvaluation.finish`."""
        return self._taken(self._limit_s) + self._now(step, "after")

    def close(self) -> None:
        """See `StepEvaluation.close`."""
        self._loop.close()
        self._results.close()

    @property
    def _limit_s(self) -> float:
        """Seconds of a wait: after `trainer.wait_timeout_s` ranks hang, and `finish` has two."""
        return self._settings.trainer.wait_timeout_s / 3

    def _now(self, step: int, label: Label) -> list[EvaluationRow]:
        """Evaluate version `step`, which servers serve for as long as this waits."""
        self._running = self._loop.start(self._evaluate(step, label))
        return self._taken(self._limit_s)

    def _taken(self, limit_s: float) -> list[EvaluationRow]:
        """The result of the evaluation that goes on, if any; it is given up after `limit_s`."""
        running, self._running = self._running, None
        if running is None:
            return []
        try:
            return [running.result(limit_s)]
        except Exception as error:  # whatever went wrong, it is not worth a run
            running.cancel()
            self._num_failed += 1
            late = f"it took over {limit_s:.0f} s" if isinstance(error, TimeoutError) else ""
            unknown = None if late or isinstance(error, SggError) else error
            logger.warning("an evaluation failed: %s", late or error, exc_info=unknown)
            return []

    async def _evaluate(self, step: int, label: Label = "now") -> EvaluationRow:
        """A line of `evaluations.jsonl`; the answers are kept."""
        started = time.monotonic()
        settings = self._settings
        if not self._samples:
            self._samples = await asyncio.to_thread(heldout_samples, settings)
        progress = Progress(total=len(self._samples))
        async with shown_progress(settings.run.files, step, label, progress):
            servers = await self._servers(step)
            found = await answers(settings, self._samples, servers, progress, trains=True)
        if label != "now":  # others may be of several versions, which their lines say
            check_version(found.lines, step)
        scores = heldout_scores(settings, self._samples, found.lines)
        keep_heldout(settings, label, found, scores)
        versions = answering_versions(found.lines)
        row = {
            "step": step,
            "policy_version_oldest": min(versions, default=None),
            "policy_version_newest": max(versions, default=None),
            "time": time.time(),
            "seconds": time.monotonic() - started,
        }
        return cast("EvaluationRow", row | scores)

    async def _servers(self, step: int) -> list[str]:
        """Urls of the run's servers that serve version `step` of this trainer, or a later one.

        Raises:
            UnavailableError: None did in time.
        """
        began, notice = time.monotonic(), WaitNotice(_SERVED_S)
        async with open_registry(self._settings) as registry:
            while (waited_s := time.monotonic() - began) < _SERVED_S:
                notice.waited(waited_s, f"no rollout server serves version {step} yet")
                with suppress(UnavailableError):  # Redis may be back in time
                    wanted = Version(await registry.incarnation(), step)
                    urls = [server.url for server in await registry.servers()]
                    serving = await asyncio.gather(*(self._serves(url, wanted) for url in urls))
                    if any(serving):
                        return [url for url, is_it in zip(urls, serving, strict=True) if is_it]
                await asyncio.sleep(_POLL_S)
        raise UnavailableError(f"no rollout server served version {step} in {_SERVED_S:g} s")

    async def _serves(self, url: str, wanted: Version) -> bool:
        async with RolloutClient(
            url,
            token=self._settings.data_token,
            timeout_s=_POLICY_S,
            registered=self._settings.security,
        ) as client:
            try:
                info = await client.policy()
            except SggError:
                return False
        return not info.version < wanted
