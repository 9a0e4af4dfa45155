"""Similarities as a file; `docs/similarity.md` describes the format.

Example: `{"format": "sgg-similarity/1", "source": "by hand", "names": ["man", "person"],
"pairs": [["man", "person", 0.8]]}`
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from scene_graph.graph import normalise_name
from scene_graph.similarity import TableSimilarity
from services.errors import InvalidInputError

FORMAT = "sgg-similarity/1"
MAX_NAMES = 8192
MAX_BYTES = 64_000_000

Pair = tuple[str, str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityTable:
    """A symmetric table over a closed vocabulary; `make_table` makes one.

    Example: `SimilarityTable(source="by hand", names=("man", "person"), pairs={("man", "person"):
    0.8})`
    """

    source: str
    """How it was made, for people."""
    names: tuple[str, ...]
    """Sorted, normalised, distinct."""
    pairs: Mapping[tuple[str, str], float]
    """Similarity of two different names, the lesser first, 0 < value <= 1; in sorted order."""

    def similarity(self) -> TableSimilarity:
        """As scoring uses it."""
        return TableSimilarity(self.names, self.pairs)

    def neighbours(self, name: str) -> list[tuple[str, float]]:
        """The names that are like `name`, the most alike first.

        Raises:
            InvalidInputError: The name is not in the table.
        """
        wanted = normalise_name(name)
        if wanted not in self.names:
            raise InvalidInputError(f"{wanted!r} is not in the table: it is compared exactly")
        found = [
            (right if left == wanted else left, value)
            for (left, right), value in self.pairs.items()
            if wanted in (left, right)
        ]
        return sorted(found, key=lambda item: (-item[1], item[0]))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["sgg-similarity/1"]
    source: str
    names: Annotated[list[str], FailFast()]
    pairs: Annotated[list[Pair], FailFast()]


def make_table(source: str, names: Sequence[str], pairs: Sequence[Pair]) -> SimilarityTable:
    """A table in its canonical form.

    Args:
        source: How it was made, for people.
        names: The vocabulary, in any spelling.
        pairs: Two of the names and their similarity in 0..1, in any order; missing pairs have 0.

    Raises:
        InvalidInputError: Too many names, a pair with a name that is not listed, or two statements
            that contradict each other; the message says where.
    """
    known = known_names(names)
    values: dict[tuple[str, str], float] = {}
    for index, pair in enumerate(pairs):
        try:
            _add_pair(values, known, *pair)
        except InvalidInputError as error:
            raise InvalidInputError(f"pairs.{index}: {error.message}") from error
    _check_spellings(names, pairs)
    kept = {pair: value for pair, value in sorted(values.items()) if value > 0}
    return SimilarityTable(source=source, names=tuple(sorted(known)), pairs=kept)


def known_names(names: Iterable[str]) -> set[str]:
    """The names normalised.

    Raises:
        InvalidInputError: One is empty, or there are too many for a table.
    """
    known = {normalise_name(name) for name in names}
    if "" in known:
        raise InvalidInputError("names: one is empty; leave it out")
    if len(known) > MAX_NAMES:
        raise InvalidInputError(f"names: {len(known)} of them, over the limit of {MAX_NAMES}")
    return known


def load_table(path: Path) -> SimilarityTable:
    """Read a table.

    Raises:
        InvalidInputError: It cannot be read, or is not a table; the message says what and where.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidInputError(f"over the limit of {MAX_BYTES} bytes")
        content = _File.model_validate_json(data)
        return make_table(content.source, content.names, content.pairs)
    except OSError as error:
        reason = error.strerror or "cannot be read"
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
    except InvalidInputError as error:
        reason = error.message
    raise InvalidInputError(f"similarity table {path.name}: {reason}")


def save_table(path: Path, table: SimilarityTable) -> None:
    """Write a table; the same table gives the same bytes. A reader sees all of it or none."""
    entries = [[*pair, value] for pair, value in table.pairs.items()]
    parts = {
        "format": json.dumps(FORMAT),
        "source": json.dumps(table.source),
        "names": _one_a_line(table.names),
        "pairs": _one_a_line(entries),
    }
    text = "{\n" + ",\n".join(f'"{key}": {value}' for key, value in parts.items()) + "\n}\n"
    if len(text) > MAX_BYTES:
        raise InvalidInputError(
            f"the table has {len(text)} bytes, over the limit of {MAX_BYTES}: raise the threshold "
            "or take fewer names"
        )
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}") from error


def _add_pair(
    values: dict[tuple[str, str], float], known: set[str], left: str, right: str, value: float
) -> None:
    left, right = sorted((normalise_name(left), normalise_name(right)))
    for name in (left, right):
        if name not in known:
            raise InvalidInputError(f"{name!r} is not in names")
    if left == right:
        if value != 1:
            raise InvalidInputError(f"{left!r} has {value} with itself; leave the pair out")
        return
    before = values.setdefault((left, right), value)
    if value != before:
        raise InvalidInputError(f"{left!r} and {right!r} have {value} here and {before} before")


def _check_spellings(names: Iterable[str], pairs: Iterable[Pair]) -> None:
    """Two spellings of one name must mean the same, else one of them is a mistake."""
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        spellings[normalise_name(name)].append(name)
    rows: dict[str, dict[str, float]] = {
        name: {} for same in spellings.values() if len(same) > 1 for name in same
    }
    for left, right, value in pairs if rows else ():
        for name, other in ((left, right), (right, left)):
            if name in rows and value > 0 and normalise_name(other) != normalise_name(name):
                rows[name][normalise_name(other)] = value
    for same in spellings.values():
        if any(rows[name] != rows[same[0]] for name in same[1:]):
            raise InvalidInputError(
                f"names: {', '.join(map(repr, same))} are one name after normalising, but have "
                "different pairs; keep one of them"
            )


def _one_a_line(items: Iterable[object]) -> str:
    lines = ",\n".join(json.dumps(item) for item in items)
    return f"[\n{lines}\n]" if lines else "[]"
