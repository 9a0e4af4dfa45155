"""A folder of predictions: what it lacks of some images, and asking rollout servers about these.

What is missing is known, and other settings are refused, before any server is started.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.inference.answers import NOT_ASKED
from evaluation.inference.fleet import Fleet
from evaluation.inference.infer import Inference, requests_per_server
from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
from evaluation.inference.record import InferenceRecord, record_fields
from evaluation.reading.lines import GraphLine
from scene_data.dataset import SceneDataset
from services.errors import ConflictError
from services.schemas.weights import PolicyInfo
from services.settings import Settings

PREDICTIONS = "predictions.jsonl"
PICTURES = "pictures"
"""What stands for a dataset's name where pictures are named"""


@dataclass(kw_only=True)
class Work:
    """What is to be done in a folder; nobody else writes there meanwhile."""

    folder: Path
    predictions: PredictionsFile
    images: SceneDataset
    progress: Progress
    """Has counted the lines that stay; its `total` are the images that are asked about."""
    source: tuple[str, int | None]
    """Name of the dataset, and its rows; None where another start may have others"""
    new: list[int] = field(default_factory=list)
    """Images without a line"""
    again: dict[int, int] = field(default_factory=dict)
    """Number of the line, from 0, by the index of its image: of images that no model has seen, or
    that are others now"""
    written: Callable[[GraphLine], None] = lambda _: None
    """Gets each new line."""
    to_the_end: bool = False
    """As `Inference`"""

    @property
    def num_missing(self) -> int:
        """Images that a model is to be asked about."""
        return len(self.new) + len(self.again)

    def is_missing(self, line: GraphLine, index: int) -> bool:
        """Whether an image's line does not do: no model has seen the image, or it has changed."""
        return line.status in NOT_ASKED or not line.shows(self.images.image_bytes(index))

    def check_started(self, settings: Settings) -> None:
        """See that a server of `model.path`, started now, may go on with the folder.

        Raises:
            ConflictError: The predictions were made in another way.
        """
        policy = PolicyInfo(
            server_id="none",
            model=settings.model.path,
            dtype=settings.model.dtype,
            policy_version=0,
            incarnation=0,
            checksum=None,
            state="starting",
        )
        self._record(settings, policy).check()

    async def ask(self, settings: Settings, urls: list[str], *, registered: bool = False) -> None:
        """Ask about what is missing.

        Args:
            settings: The model's: prompt, box space, and `[evaluation]` for the sampling.
            urls: The servers'.
            registered: Whether the urls stood in Redis: then the servers prove that they know the
                token before it is sent.

        Raises:
            ConflictError: The predictions were made in another way, or the servers do not serve
                one policy.
            SggError: As `Inference.run`; what is written stays.
        """
        async with met_fleet(settings, urls, registered=registered) as (fleet, policy):
            record = await asyncio.to_thread(self._record, settings, policy)
            record.begin()
            self.progress.start(fleet)
            inference = Inference(
                settings, self.images, fleet, self.progress, to_the_end=self.to_the_end
            )
            await self._ask_again(inference)
            await inference.run(self.new, self._write)
        self.progress.end()
        record.end(self.progress)

    def _record(self, settings: Settings, policy: PolicyInfo) -> InferenceRecord:
        fields = record_fields(settings, policy, *self.source, self.progress.total)
        return InferenceRecord(self.folder, fields)

    def _write(self, _: int, line: GraphLine) -> None:
        self.predictions.append(line)
        self.written(line)

    async def _ask_again(self, inference: Inference) -> None:
        mended: dict[int, GraphLine] = {}
        await inference.run(
            list(self.again), lambda index, line: mended.update({self.again[index]: line})
        )
        if mended:
            self.predictions.replace(mended)
        for line in mended.values():
            self.written(line)


@asynccontextmanager
async def met_fleet(
    settings: Settings, urls: list[str], *, registered: bool
) -> AsyncIterator[tuple[Fleet, PolicyInfo]]:
    """Servers, and the policy that they serve; the arguments are those of `Work.ask`."""
    per_server = requests_per_server(settings)
    async with Fleet(settings, urls, per_server=per_server, registered=registered) as fleet:
        yield fleet, await fleet.meet(model=settings.model.path)


@contextmanager
def inference(folder: Path, dataset: SceneDataset, progress: Progress) -> Iterator[Work]:
    """A line for each image of a dataset, in its order, going on where an earlier start ended.

    Example: `with inference(folder, dataset, Progress(total=len(dataset))) as work:
    asyncio.run(work.ask(settings, ["http://127.0.0.1:8200"]))`

    Args:
        folder: Gets `predictions.jsonl` and `predictions.settings.json`.
        dataset: To ask about.
        progress: Is kept up to date; its `total` are asked about, the first ones.

    Raises:
        ConflictError: The folder has predictions of other images, or another process writes there.
    """
    with PredictionsFile(folder / PREDICTIONS) as predictions:
        work = Work(
            folder=folder,
            predictions=predictions,
            images=dataset,
            progress=progress,
            source=(dataset.name or PICTURES, len(dataset)),
        )
        num_lines = 0
        for index, line in enumerate(predictions.lines()):
            num_lines += 1
            _check_row(line, dataset, index)
            if work.is_missing(line, index):
                work.again[index] = index
            else:
                progress.count(line)
        work.new += range(num_lines, progress.total)
        yield work


def _check_row(line: GraphLine, dataset: SceneDataset, index: int) -> None:
    expected = dataset.image_id(index) if index < len(dataset) else "none"
    if str(line.image_id) != expected:
        raise ConflictError(
            f"line {index + 1} of the predictions is of image {line.image_id}, row {index + 1} of "
            f"{dataset.name or PICTURES} is image {expected}: give another --output"
        )
