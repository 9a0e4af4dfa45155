"""`drawings/`: each graph over its picture, drawn while others are asked for."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Literal, Self

from evaluation.reading.lines import GraphLine
from scene_graph.drawing import draw_png, draw_svg
from services.errors import InvalidInputError, SggError, TooLargeError
from services.images import decode_image

logger = logging.getLogger(__name__)

Kind = Literal["png", "svg", "none"]
_THREADS = 2


class Drawings:
    """Files named after their pictures: `cat.png`, and `cat-2.png` for another `cat.jpg`.

    Example: `with Drawings(folder / "drawings", picture_bytes) as drawings: drawings.add(line)`

    Args:
        folder: Is made with the first drawing.
        picture: Image id to the encoded picture; None where there is none.
        kind: Of the files; `none` draws nothing.
    """

    def __init__(
        self, folder: Path, picture: Callable[[str], bytes | None], kind: Kind = "png"
    ) -> None:
        self._folder = folder
        self._picture = picture
        self._kind = kind
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._pool = ThreadPoolExecutor(_THREADS, "drawing")
        self._drawn: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all drawings; without those not begun where the block was left by an error."""
        self._pool.shutdown(cancel_futures=kind is not None)
        for drawn in self._drawn:
            if kind is None:
                drawn.result()

    def add(self, line: GraphLine) -> None:
        """Draw a line's graph where it is not drawn yet.

        Lines come in the order of their file: another start then gives the same names.
        """
        file = self._file(line)
        if line.status == "ok" and self._kind != "none" and not file.exists():
            self._drawn.append(self._pool.submit(self._draw, line, file))

    def remove(self, line: GraphLine) -> None:
        """Remove the drawing of a line that is asked for anew; the name stays its own.

        Raises:
            SggError: It cannot be removed.
        """
        file = self._file(line)
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise _not_changed("remove", file, error) from error

    def _file(self, line: GraphLine) -> Path:
        return self._folder / f"{self._name(str(line.image_id))}.{self._kind}"

    def _name(self, image_id: str) -> str:
        if image_id not in self._names:
            stem = Path(image_id).stem
            others = (f"{stem}-{number}" for number in count(2))
            name = (
                stem if stem not in self._taken else next(n for n in others if n not in self._taken)
            )
            self._names[image_id] = name
            self._taken.add(name)
        return self._names[image_id]

    def _draw(self, line: GraphLine, file: Path) -> None:
        data = self._picture(str(line.image_id))
        if data is None:
            return
        try:
            image = decode_image(data)
        except (InvalidInputError, TooLargeError) as error:
            logger.warning("%s is not drawn: %s", line.image_id, error)
            return
        if image.size != line.size or not line.shows(data):
            logger.warning(
                "%s is not drawn: it has changed since it was asked about; name it, and it is "
                "asked about again",
                line.image_id,
            )
            return
        if self._kind == "svg":
            drawn = draw_svg(line.graph, *line.size, image).encode()
        else:
            drawn = draw_png(line.graph, *line.size, image)
        draft = file.with_name(file.name + ".draft")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(drawn)
            draft.replace(file)
        except OSError as error:
            raise _not_changed("write", file, error) from error


def _not_changed(what: str, file: Path, error: OSError) -> SggError:
    return SggError(
        f"cannot {what} {file}: {error.strerror}; mend this, then run the same command again"
    )
