"""Inference into a folder: all of `sgg-rl infer` once it has servers."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
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


async def infer_into(
    folder: Path,
    settings: Settings,
    urls: Sequence[str],
    dataset: SceneDataset,
    progress: Progress,
    *,
    registered: bool = False,
) -> None:
    """A line for each image, going on where an earlier start ended.

    Args:
        folder: Gets `predictions.jsonl` and `predictions.settings.json`.
        settings: The run's.
        urls: The servers'.
        dataset: To ask about.
        progress: Is kept up to date; its `total` are asked about, the first ones.
        registered: Whether the urls stood in Redis: then the servers prove that they know the
            token before it is sent.

    Raises:
        ConflictError: The folder has predictions that were made in another way, or of other images,
            or another process writes there; or the servers do not serve one policy.
        SggError: As `Inference.run`.
    """
    async with met_fleet(settings, urls, registered=registered) as (fleet, policy):
        source = dataset.name, len(dataset)
        async with recorded(folder, settings, policy, progress, source) as predictions:
            num_lines, again = _take_up(predictions, dataset, progress)
            progress.start(fleet)
            inference = Inference(settings, dataset, fleet, progress)
            await ask_again(inference, predictions, again)
            rest = range(num_lines, progress.total)
            await inference.run(rest, lambda _, line: predictions.append(line))


@asynccontextmanager
async def met_fleet(
    settings: Settings, urls: Sequence[str], *, registered: bool = False
) -> AsyncIterator[tuple[Fleet, PolicyInfo]]:
    """Servers, and the policy that they serve; the arguments are those of `infer_into`."""
    per_server = requests_per_server(settings)
    async with Fleet(settings, urls, per_server=per_server, registered=registered) as fleet:
        yield fleet, await fleet.meet(model=settings.model.path)


@asynccontextmanager
async def recorded(
    folder: Path,
    settings: Settings,
    policy: PolicyInfo,
    progress: Progress,
    source: tuple[str, int | None],
) -> AsyncIterator[PredictionsFile]:
    """The folder's predictions, with what they are made by beside them.

    Args:
        folder: As `infer_into`.
        settings: The run's.
        policy: What is asked.
        progress: Ends with the block.
        source: Name of the dataset, and its rows; None where another start may have others.

    Raises:
        ConflictError: As `infer_into`.
    """
    fields = await asyncio.to_thread(record_fields, settings, policy, *source, progress.total)
    with PredictionsFile(folder / PREDICTIONS) as predictions:
        record = InferenceRecord(folder, fields)
        record.begin()
        yield predictions
    progress.end()
    record.end(progress)


async def ask_again(
    inference: Inference, predictions: PredictionsFile, lines: Mapping[int, int]
) -> list[GraphLine]:
    """Put answers in the place of lines that no model has answered; the new lines.

    Args:
        inference: Over the images.
        predictions: That have these lines.
        lines: Number of each line, from 0, by the index of its image.
    """
    mended: dict[int, GraphLine] = {}
    await inference.run(list(lines), lambda i, line: mended.update({lines[i]: line}))
    if mended:
        predictions.replace(mended)
    return list(mended.values())


def _take_up(
    predictions: PredictionsFile, dataset: SceneDataset, progress: Progress
) -> tuple[int, dict[int, int]]:
    """Count what is there: how many lines, and which of them no model has answered.

    Raises:
        ConflictError: The last line is of another image than the dataset's.
    """
    number, again = 0, {}
    line: GraphLine | None = None
    for number, line in enumerate(predictions.lines(), start=1):
        if line.status in NOT_ASKED:
            again[number - 1] = number - 1
        else:
            progress.count(line)
    if line is not None and line.status not in NOT_ASKED:
        expected = dataset[number - 1].image_id
        if str(line.image_id) != expected:
            raise ConflictError(
                f"line {number} of the predictions is of image {line.image_id}, row {number} of "
                f"{dataset.name} is image {expected}: give another --output"
            )
    return number, again
