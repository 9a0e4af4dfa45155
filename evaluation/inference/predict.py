"""Pictures into a folder, with a drawing of each graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.inference.drawings import Drawings
from evaluation.inference.folder import PICTURES, PREDICTIONS, Work
from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
from evaluation.reading.lines import GraphLine
from scene_data.dataset import SceneDataset
from scene_data.reading.pictures import PictureRows


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


@contextmanager
def prediction(
    folder: Path, pictures: SceneDataset, progress: Progress, drawings: Drawings
) -> Iterator[Work]:
    """A line and a drawing for each picture that has none yet, or has changed since.

    Args:
        folder: As `inference`; lines of other pictures may be there, and stay.
        pictures: As `picture_dataset` gives them.
        progress: Is kept up to date; its `total` are all pictures.
        drawings: Gets every line of the folder.

    Raises:
        ConflictError: Another process writes there.
    """
    indexes = {pictures.image_id(index): index for index in range(len(pictures))}
    with PredictionsFile(folder / PREDICTIONS) as predictions:
        work = Work(
            folder=folder,
            predictions=predictions,
            images=pictures,
            progress=progress,
            source=(PICTURES, None),
            written=drawings.add,
            to_the_end=True,
        )
        for number, line in enumerate(predictions.lines()):
            index = indexes.pop(str(line.image_id), None)
            if index is not None and work.is_missing(line, index):
                work.again[index] = number
                drawings.remove(line)
            else:
                drawings.add(line)
                if index is not None:
                    progress.count(line)
        work.new += indexes.values()
        yield work
