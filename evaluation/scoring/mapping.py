"""From the names that a model chose to those of a vocabulary.

Each predicted name, normalised, takes the first step that fits:

1. `exact`: it is a name of the vocabulary;
2. `alias`: a list says which name it stands for;
3. `embedding`: the most alike name of the vocabulary, if their cosine reaches `MIN_COSINE`; with an
   embedding model only;
4. `unmapped`: it stays as it is, and counts as a wrong name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scene_data.vocabulary import Aliases, Vocabulary
from scene_graph.metrics.table import ImageGraph
from scene_graph.similarity import Similarity

STEPS = ("exact", "alias", "embedding", "unmapped")
MIN_COSINE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapper:
    """What predicted names are mapped by."""

    vocabulary: Vocabulary
    """Normalised"""
    aliases: Aliases
    similarity: Similarity | None = None
    """An embedding model's"""


def map_graphs(graphs: Sequence[ImageGraph], mapper: Mapper) -> dict[str, dict[str, float]]:
    """Rename objects and predicates in place.

    Returns:
        For `objects` and `predicates` the share of all predicted names that each step mapped.
    """
    names = Counter(name for graph in graphs for name in graph.names)
    predicates = Counter(name for graph in graphs for name in graph.predicates)
    vocabulary, aliases = mapper.vocabulary, mapper.aliases
    of_name = map_names(names, vocabulary.objects, aliases.objects, mapper.similarity)
    of_predicate = map_names(
        predicates, vocabulary.predicates, aliases.predicates, mapper.similarity
    )
    for graph in graphs:
        graph.names = [of_name[name][0] for name in graph.names]
        graph.predicates = [of_predicate[name][0] for name in graph.predicates]
    return {"objects": _shares(names, of_name), "predicates": _shares(predicates, of_predicate)}


def map_names(
    names: Iterable[str],
    vocabulary: Sequence[str],
    aliases: Mapping[str, str],
    similarity: Similarity | None = None,
) -> dict[str, tuple[str, str]]:
    """Each name to what it becomes, and the step that made it so.

    Args:
        names: Distinct, normalised, as all names here.
        vocabulary: Those to map to.
        aliases: Other name to name; those that lead out of the vocabulary are not used.
        similarity: For names that nothing else maps.
    """
    known = set(vocabulary)
    mapped: dict[str, tuple[str, str]] = {}
    rest = []
    for name in names:
        if name in known:
            mapped[name] = (name, "exact")
        elif aliases.get(name) in known:
            mapped[name] = (aliases[name], "alias")
        else:
            rest.append(name)
    nearest = _nearest(rest, vocabulary, similarity) if similarity and rest else {}
    for name in rest:
        mapped[name] = (nearest[name], "embedding") if name in nearest else (name, "unmapped")
    return mapped


def _nearest(names: list[str], vocabulary: Sequence[str], similarity: Similarity) -> dict[str, str]:
    """The most alike name of the vocabulary where it is alike enough; of equals the first."""
    both = [*vocabulary, *names]
    size = len(vocabulary)
    right = np.tile(np.arange(size), len(names))
    left = np.arange(size, size + len(names)).repeat(size)
    cosines = similarity.of_pairs(both, left, right).reshape(len(names), size)
    best = cosines.argmax(axis=1).tolist()
    rows = zip(names, best, cosines.max(axis=1).tolist(), strict=True)
    return {name: vocabulary[index] for name, index, cosine in rows if cosine >= MIN_COSINE}


def _shares(counts: Counter[str], mapped: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    by_step = dict.fromkeys(STEPS, 0)
    for name, count in counts.items():
        by_step[mapped[name][1]] += count
    total = max(counts.total(), 1)
    return {step: count / total for step, count in by_step.items()}
