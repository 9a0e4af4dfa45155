"""Pictures through rollout servers: graphs one after the other, or into a folder with drawings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue

from evaluation.inference.answers import NOT_ASKED
from evaluation.inference.drawings import Drawings
from evaluation.inference.folder import PREDICTIONS, ask_again, met_fleet, recorded
from evaluation.inference.infer import Inference
from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
from evaluation.reading.lines import GraphLine
from scene_data.dataset import SceneDataset
from scene_data.reading.pictures import PictureRows
from services.http.loop_thread import LoopThread
from services.settings import Settings


def picture_dataset(pictures: Sequence[Path]) -> SceneDataset:
    """Pictures as rows without graphs, in this order; each one's id is its path."""
    return SceneDataset(PictureRows(pictures), "", annotated=False)


def picture_reader(files: Mapping[str, Path]) -> Callable[[str], bytes | None]:
    """Reads a picture by its id: one of these files, else the path that the id is; None: none."""

    def read(image_id: str) -> bytes | None:
        try:
            return files.get(image_id, Path(image_id)).read_bytes()
        except OSError:
            return None

    return read


def kept_lines(folder: Path) -> list[GraphLine]:
    """The lines of a folder."""
    with PredictionsFile(folder / PREDICTIONS) as predictions:
        return list(predictions.lines())


def predict(
    pictures: Sequence[Path], settings: Settings, urls: Sequence[str], *, registered: bool = False
) -> Iterator[GraphLine]:
    """The graphs of pictures, in their order, each as soon as it is there.

    Example: `for line in predict([Path("cat.jpg")], settings, ["http://127.0.0.1:8200"]):
    print(line.graph)`

    Args:
        pictures: Files; one that cannot be read, or that a server refuses, has a line without a
            graph whose `status` and `problem` say so.
        settings: Of the model: prompt, box space, vocabulary, and `[evaluation]` for the sampling.
        urls: Of rollout servers that serve that model.
        registered: As `infer_into`.

    Raises:
        ConflictError: The servers serve another model.
        UnavailableError: None answered in time.
    """
    found: SimpleQueue[GraphLine | None] = SimpleQueue()
    samples = picture_dataset(pictures)

    async def ask() -> None:
        progress = Progress(total=len(samples))
        async with met_fleet(settings, urls, registered=registered) as (fleet, _):
            inference = Inference(settings, samples, fleet, progress, to_the_end=True)
            await inference.run(range(len(samples)), lambda _, line: found.put(line))

    loop = LoopThread("predict")
    try:
        asked = loop.start(ask())
        asked.add_done_callback(lambda _: found.put(None))
        while (line := found.get()) is not None:
            yield line
        asked.result()
    finally:
        loop.close()


async def predict_into(
    folder: Path,
    settings: Settings,
    urls: Sequence[str],
    pictures: SceneDataset,
    progress: Progress,
    drawings: Drawings,
    *,
    registered: bool = False,
) -> None:
    """A line and a drawing for each picture that has none yet.

    Args:
        folder: As `infer_into`; lines of other pictures may be there, and stay.
        settings: As `predict`.
        urls: As `predict`.
        pictures: As `picture_dataset` gives them.
        progress: Is kept up to date; its `total` are all pictures.
        drawings: Gets every line of the folder.
        registered: As `infer_into`.

    Raises:
        ConflictError: As `infer_into`.
        SggError: As `Fleet.ask`; what is written stays.
    """
    indexes = {pictures.image_id(index): index for index in range(len(pictures))}
    async with met_fleet(settings, urls, registered=registered) as (fleet, policy):
        source = "pictures", None
        async with recorded(folder, settings, policy, progress, source) as predictions:
            again: dict[int, int] = {}
            for number, line in enumerate(predictions.lines()):
                drawings.add(line)
                index = indexes.pop(str(line.image_id), None)
                if index is not None and line.status in NOT_ASKED:
                    again[index] = number
                elif index is not None:
                    progress.count(line)
            progress.start(fleet)

            def write(_: int, line: GraphLine) -> None:
                predictions.append(line)
                drawings.add(line)

            inference = Inference(settings, pictures, fleet, progress, to_the_end=True)
            for line in await ask_again(inference, predictions, again):
                drawings.add(line)
            await inference.run(list(indexes.values()), write)
