"""A dataset's images through rollout servers: one line each, in the dataset's order."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from evaluation.inference.answers import answers_line, not_asked_line
from evaluation.inference.fleet import Fleet
from evaluation.inference.progress import Progress
from evaluation.inference.prompts import rollout_request
from evaluation.reading.lines import GraphLine, image_sha256
from scene_data.dataset import (
    MAX_BROKEN_ROWS,
    MAX_BROKEN_SHARE,
    Sample,
    SceneDataset,
    UnusableRowError,
)
from services.errors import EngineError, InvalidInputError, SggError, TooLargeError
from services.settings import Settings

logger = logging.getLogger(__name__)

MAX_REQUESTS_PER_SERVER = 192
"""A server takes 256 over HTTP; others may ask it too."""
_WINDOW = 8
"""Images under way or waiting for an earlier one to end, for each request in flight: their lines
are held in memory, their pictures are not."""
Samples = SceneDataset | list[Sample]


def requests_per_server(settings: Settings) -> int:
    """As many as a server samples at the same time, and some that prepare their images."""
    wanted = -(-settings.rollout.max_num_seqs // settings.evaluation.num_answers)
    return min(wanted + max(4, wanted // 4), MAX_REQUESTS_PER_SERVER)


class Inference:
    """Asks for images and writes what comes back.

    Who waits for whom: images are read one after the other, when a place with a server is free; a
    line waits for those before it, and reading waits for the first line of a full window.
    """

    def __init__(
        self,
        settings: Settings,
        samples: Samples,
        fleet: Fleet,
        progress: Progress,
        *,
        to_the_end: bool = False,
    ) -> None:
        """Starts nothing.

        Args:
            settings: The run's: model, prompt and sampling.
            samples: Images, read one at a time from any thread.
            fleet: That has met.
            progress: Is kept up to date; has how many there are in all.
            to_the_end: Go on however many images cannot be asked about; their lines say why.
        """
        self._settings = settings
        self._samples = samples
        self._fleet = fleet
        self._progress = progress
        self._to_the_end = to_the_end
        self._places = asyncio.Semaphore(fleet.capacity)
        self._reading = asyncio.Lock()
        self._not_asked: list[str] = []

    async def run(self, indexes: Sequence[int], write: Callable[[int, GraphLine], None]) -> None:
        """Until each of these images has its line.

        Args:
            indexes: Among the samples.
            write: Gets each index with its line, in this order.

        Raises:
            InvalidInputError: Too many images are unreadable or were refused.
            SggError: As `Fleet.ask`; what is written stays.
        """
        window = _WINDOW * self._fleet.capacity
        under_way: asyncio.Queue[asyncio.Task[GraphLine]] = asyncio.Queue(window)
        try:
            async with asyncio.TaskGroup() as group:

                async def start_all() -> None:
                    for index in indexes:
                        await under_way.put(group.create_task(self._line(index)))

                group.create_task(start_all())
                for index in indexes:
                    line = await (await under_way.get())
                    write(index, line)
                    self._progress.count(line)
        except ExceptionGroup as errors:  # not `except*`: it may wrap what is raised in it
            known, others = errors.split(SggError)
            if known is None or others is not None:
                raise
            raise _first(known) from None

    async def _line(self, index: int) -> GraphLine:
        async with self._places:
            try:
                async with self._reading:
                    sample, sha256 = await asyncio.to_thread(self._read, index)
            except InvalidInputError as error:
                if isinstance(error, UnusableRowError):  # of which a dataset has but a small share
                    logger.warning("%s", error.message)
                else:
                    self._note(error.message)
                return not_asked_line(self._image_id(index), "unreadable", error.message)
            try:
                line = await self._answered(sample)
                line.image_sha256 = sha256
                return line
            except (InvalidInputError, TooLargeError, EngineError) as error:
                self._note(f"image {sample.image_id} was refused: {error.message}")
                size = sample.width, sample.height
                return not_asked_line(sample.image_id, "refused", error.message, size)

    def _read(self, index: int) -> tuple[Sample, str]:
        sample = self._samples[index]
        return sample, image_sha256(sample.image_bytes)

    def _image_id(self, index: int) -> str:
        samples = self._samples
        return samples[index].image_id if isinstance(samples, list) else samples.image_id(index)

    async def _answered(self, sample: Sample) -> GraphLine:
        """The free answer, and then, where that is wanted, one under the grammar."""
        free = await self._ask(sample, constrained=False)
        constrain = self._settings.evaluation.constrain
        if constrain == "never" or (constrain == "failures" and free.status == "ok"):
            return free
        return await self._ask(sample, constrained=True, free=free)

    async def _ask(
        self, sample: Sample, *, constrained: bool, free: GraphLine | None = None
    ) -> GraphLine:
        request = await asyncio.to_thread(
            rollout_request, self._settings, sample, constrained=constrained
        )
        answers = (await self._fleet.ask(request)).completions
        self._progress.tokens += sum(len(answer.token_ids) for answer in answers)
        return answers_line(self._settings, sample, answers, free)

    def _note(self, message: str) -> None:
        """A model is not blamed for what it was not asked; a few such images are let pass.

        Raises:
            InvalidInputError: It is not a few.
        """
        if self._to_the_end:
            return
        logger.warning("%s", message)
        self._not_asked.append(message)
        limit = max(MAX_BROKEN_ROWS, int(MAX_BROKEN_SHARE * self._progress.total))
        if len(self._not_asked) > limit:
            listed = "\n".join(f"  {text}" for text in self._not_asked[:20])
            raise InvalidInputError(
                f"more than {limit} of {self._progress.total} images could not be asked about; "
                f"mend this, then run the same command again:\n{listed}"
            )


def _first(errors: ExceptionGroup[SggError]) -> SggError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
