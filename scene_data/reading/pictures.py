"""Pictures by themselves: rows that have an image and no graph."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.errors import InvalidInputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".heic", ".heif", ".avif")
"""Formats that are read"""
_OTHER_SUFFIXES = (".tif", ".tiff")
"""Pictures that are not read: they are named, not passed over"""
LIST = ".txt"


class PictureRows:
    """A row for each picture; its id is its path.

    Example: `PictureRows([Path("photos/cat.jpg")]).row(0)["image_id"] == "photos/cat.jpg"`
    """

    def __init__(self, pictures: Sequence[Path]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def row(self, index: int) -> dict[str, Any]:
        """See `Rows`."""
        picture = self._pictures[index]
        return {"image_id": str(picture), "image": {"path": picture}}

    def annotations(self, indexes: NDArray[np.int64] | None = None) -> Iterator[dict[str, Any]]:
        """See `Rows`."""
        wanted = range(len(self)) if indexes is None else indexes.tolist()
        return ({"image_id": str(self._pictures[index])} for index in wanted)

    def empty(self, column: str) -> NDArray[np.bool_]:
        """See `Rows`; a picture has no lists."""
        return np.zeros(len(self), dtype=bool)

    def place(self, index: int) -> str:
        """See `Rows`."""
        return str(self._pictures[index])

    @property
    def state(self) -> str | None:
        """See `Rows`; nothing is read of pictures."""
        return None


def find_pictures(names: Iterable[str], *, but: Path | None = None) -> list[Path]:
    """The pictures that a person names, each once, in this order.

    Args:
        names: Of files, of folders (with all inside them, sorted by name), of lists (`.txt`, a path
            a line, from the list's folder), or patterns (`photos/*.jpg`). A file need not exist.
        but: A folder whose pictures are passed over where they are not named themselves.

    Raises:
        InvalidInputError: A folder or pattern has no picture, or there is no such list.
    """
    return list(dict.fromkeys(path for name in names for path in _named(name, but)))


def pictures_inside(folder: Path, *, but: Path | None = None) -> list[Path]:
    """All pictures in a folder and those inside it, sorted; hidden files are passed over.

    Links to folders are not followed.
    """
    return [
        path
        for path in sorted(folder.rglob("*"))
        if is_picture(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and _names_file(path)
        and not _is_inside(path, but)
    ]


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture, also of a kind that is not read."""
    return path.suffix.lower() in (*SUFFIXES, *_OTHER_SUFFIXES)


def is_pattern(name: str) -> bool:
    """Whether it stands for several files: `photos/*.jpg`."""
    return glob.has_magic(name) and not Path(name).exists()


def listed_paths(lines: Iterable[str], folder: Path) -> list[Path]:
    """The paths of a list, from a folder; blank lines are passed over."""
    return [folder / line.strip() for line in lines if line.strip()]


def _named(name: str, but: Path | None) -> list[Path]:
    path = Path(name)
    if is_pattern(name):
        fits = map(Path, sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 - of any folder
        found = [path for path in fits if _names_file(path) and not _is_inside(path, but)]
        return _not_none(found, f"no file fits {name}")
    if path.is_dir():
        none = f"no picture in the folder {name} ({', '.join(SUFFIXES)} are looked for)"
        return _not_none(pictures_inside(path, but=but), none)
    if path.suffix.lower() == LIST:
        return _not_none(_read_list(path), f"the list {name} names no picture")
    return [path]


def _names_file(path: Path) -> bool:
    """Whether it is a file, or a link to one that is gone, which is not passed over."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _read_list(path: Path) -> list[Path]:
    try:
        return listed_paths(path.read_text(encoding="utf-8-sig").splitlines(), path.parent)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"the list {path} cannot be read: {error}; it has the path of a picture on each line"
        ) from error


def _not_none(found: list[Path], message: str) -> list[Path]:
    if not found:
        raise InvalidInputError(f"{message}: name pictures, or a folder or list of some")
    return found
