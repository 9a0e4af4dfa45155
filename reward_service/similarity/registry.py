"""The similarities that a rubric can name: `exact`, `table:FILE`, `embedding:MODEL`.

A request chooses among what the operator put in place. It never makes the service read another
file, nor fetch or load another model.
"""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from reward_service.similarity.table import load_table
from scene_graph.similarity import ExactSimilarity, Similarity
from services.errors import InvalidInputError, SettingsError

_SHOWN = 20
"""Tables that an error message lists."""
_Stamp = tuple[int, int, int]
"""Inode, time of change in ns and size: another file has another one."""


class Similarities:
    """Loads each similarity once; a table again when its file changes. Safe for several threads."""

    def __init__(self, folder: Path | None = None, embedding_models: Sequence[str] = ()) -> None:
        """Load nothing yet.

        Args:
            folder: Holds the tables, `*.json`.
            embedding_models: Folders or hub names of the models that may be asked for.

        Raises:
            SettingsError: There is no such folder.
        """
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"[reward] similarity_folder: there is no folder {folder}")
        self._folder = folder
        self._models = tuple(embedding_models)
        self._loaded_tables: dict[str, tuple[_Stamp | None, Similarity | str]] = {}
        self._loaded_models: dict[str, Similarity] = {}
        # Two locks: tables stay at hand while a model loads for seconds.
        self._table_lock, self._model_lock = Lock(), Lock()

    def get(self, name: str) -> Similarity:
        """The similarity that a rubric names. Loading takes seconds at worst, then none.

        Raises:
            InvalidInputError: It is unknown, not allowed or unreadable; the message says what there
                is.
        """
        kind, _, rest = name.partition(":")
        if name == "exact":
            return ExactSimilarity()
        if kind == "table":
            return self._table(rest)
        if kind == "embedding":
            return self._embedding(rest)
        raise InvalidInputError(
            f"no similarity {name[:100]!r}; there are exact, table:FILE and embedding:MODEL"
        )

    def _table(self, name: str) -> Similarity:
        path = self._path(name)
        with self._table_lock:
            stamp = _stamp(path)
            if stamp is None or self._loaded_tables.get(name, (None,))[0] != stamp:
                self._loaded_tables[name] = (stamp, _load(path))
            table = self._loaded_tables[name][1]
        if isinstance(table, str):
            raise InvalidInputError(table)
        return table

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise InvalidInputError(
                f"table:{name[:100]} needs a folder of tables: set [reward] similarity_folder of a "
                "reward service (sgg-rl score has --similarity-folder, sgg_rl.score has client)"
            )
        # The name is looked for among the files there are, and never becomes part of a path.
        found = [path for path in self._folder.glob("[!.]*.json") if path.name == name]
        table = _table_file(found[0], self._folder) if found else None
        if table is None:
            shown = ", ".join(_names_of_tables(self._folder)[:_SHOWN]) or "none"
            raise InvalidInputError(f"no similarity table {name[:100]!r}; there are: {shown}")
        return table

    def _embedding(self, model: str) -> Similarity:
        if model not in self._models:
            allowed = ", ".join(f"embedding:{name}" for name in self._models) or "none"
            raise InvalidInputError(
                f"embedding model {model[:100]!r} is not allowed here; allowed are: {allowed} "
                "([reward] embedding_models)"
            )
        with self._model_lock:
            if model not in self._loaded_models:
                from reward_service.similarity.embedding import load_embedding

                self._loaded_models[model] = load_embedding(model)
            return self._loaded_models[model]


def _names_of_tables(folder: Path) -> list[str]:
    paths = sorted(folder.glob("[!.]*.json"))
    return [f"table:{path.name}" for path in paths if _table_file(path, folder)]


def _table_file(path: Path, folder: Path) -> Path | None:
    """The file behind `path`; none if a link leads out of the folder."""
    try:
        file = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return None
    return file if file.is_relative_to(folder.resolve()) and file.is_file() else None


def _stamp(path: Path) -> _Stamp | None:
    try:
        stat = path.stat()
    except OSError:  # gone a moment ago: loading it will say so
        return None
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _load(path: Path) -> Similarity | str:
    """The table, or what is wrong with it: a broken file is not read again for every request."""
    try:
        return load_table(path).similarity()
    except InvalidInputError as error:
        return error.message
