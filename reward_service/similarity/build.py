"""Making tables of similarities from a vocabulary."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from reward_service.similarity.table import Pair, SimilarityTable, known_names, make_table
from scene_graph.graph import normalise_name
from scene_graph.similarity import Similarity
from services.errors import InvalidInputError

_LISTS = (
    "label_to_idx",  # Visual Genome's dictionaries: name -> number
    "predicate_to_idx",
    "thing_classes",  # PSG's categories: lists
    "stuff_classes",
    "predicate_classes",
)


def read_vocabulary(path: Path) -> list[str]:
    """The names in a file, normalised, in its order, each once.

    Args:
        path: A name a line, a JSON list, Visual Genome's dictionaries or PSG's categories.

    Raises:
        InvalidInputError: It is none of them.
    """
    text = _read(path)
    names = _names_of_json(path, text) if text.lstrip()[:1] in ("{", "[") else text.splitlines()
    if any("," in name for name in names):
        raise InvalidInputError(
            f"{path} is no vocabulary: a name has a comma; is it an alias file?"
        )
    found = _normalised(names)
    if not found:
        raise InvalidInputError(f"{path} has no names")
    return found


def read_aliases(path: Path) -> list[list[str]]:
    """The groups of synonyms in a file, normalised: one a line, separated by commas."""
    return [_normalised(line.split(",")) for line in _read(path).splitlines()]


def table_of_aliases(
    vocabulary: Iterable[str], groups: Iterable[Sequence[str]], source: str
) -> SimilarityTable:
    """1 between a name of the vocabulary and every synonym that shares a group with it.

    Groups are not chained: that two names share a group with a third says nothing about the two.

    Args:
        vocabulary: Normalised names.
        groups: Normalised synonyms; those of a vocabulary name become names of the table.
        source: How the table is made, for people.
    """
    names = set(vocabulary)
    pairs = {
        (name, other)
        for group in groups
        for name in names.intersection(group)
        for other in group
        if other != name
    }
    aliases = {alias for _, alias in pairs}
    return make_table(source, [*names, *aliases], [(*pair, 1.0) for pair in pairs])


def table_of_similarity(
    vocabulary: Iterable[str], similarity: Similarity, threshold: float, source: str
) -> SimilarityTable:
    """What a similarity says of each two names of a vocabulary.

    Args:
        vocabulary: Normalised names.
        similarity: Asked once for every pair.
        threshold: Lesser similarities count as 0.
        source: How the table is made, for people.
    """
    names = sorted(known_names(vocabulary))
    left, right = np.triu_indices(len(names), k=1)
    values = similarity.of_pairs(names, left, right)
    alike = np.flatnonzero(values >= threshold)
    pairs: list[Pair] = [(names[left[i]], names[right[i]], float(values[i])) for i in alike]
    return make_table(source, names, pairs)


def _names_of_json(path: Path, text: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not JSON: {error}") from error
    parts = [content] if isinstance(content, list) else [content[k] for k in _LISTS if k in content]
    names = [name for part in parts if isinstance(part, list | dict) for name in part]
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"{path} is no vocabulary: that is a name a line, a JSON list of names, or JSON with "
            f"any of {', '.join(_LISTS)}"
        )
    return names


def _normalised(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(map(normalise_name, names)) if name]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
