"""What a model knows without an image: which names, boxes and predicates are frequent."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reward_service.attack.honest import Domain
from scene_graph.graph import SceneGraph
from scene_graph.similarity import Similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Frequencies in a set of annotated graphs.

    Example: `learn_prior(graphs, ExactSimilarity()).predicates[0]` is the most frequent predicate.
    """

    domain: Domain
    """Names with their counts, and boxes"""
    categories: tuple[str, ...]
    """What a guess earns most with first: by how alike it is to all names, weighted by count"""
    predicates: tuple[str, ...]
    """The same"""
    predicate_of: Mapping[tuple[str, str], str]
    """The most frequent predicate from one category to another"""
    synonyms: Mapping[str, str]
    """The most alike other name; names that are like no other are missing"""


def learn_prior(graphs: Iterable[SceneGraph], similarity: Similarity) -> Prior:
    """Count names, boxes and pairs.

    Args:
        graphs: Names normalised, boxes in fractions.
        similarity: The rubric's.
    """
    categories, predicates = Counter[str](), Counter[str]()
    pairs: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    boxes = []
    for graph in graphs:
        category = {item.id: item.category for item in graph.objects}
        categories.update(category.values())
        boxes += [item.bbox for item in graph.objects]
        for edge in graph.relationships:
            predicates[edge.predicate] += 1
            pairs[category[edge.subject], category[edge.object]][edge.predicate] += 1

    def draw_box(rng: random.Random) -> tuple[float, float, float, float]:
        return rng.choice(boxes)

    guesses, synonyms = _by_expected_similarity(categories, similarity)
    predicate_guesses, predicate_synonyms = _by_expected_similarity(predicates, similarity)
    return Prior(
        domain=Domain(categories=categories, predicates=predicates, draw_box=draw_box),
        categories=guesses,
        predicates=predicate_guesses,
        predicate_of={pair: _first(counts) for pair, counts in pairs.items()},
        synonyms=predicate_synonyms | synonyms,
    )


def _by_expected_similarity(
    counts: Mapping[str, int], similarity: Similarity
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names in the order in which they are good guesses, and each one's most alike other name."""
    names = sorted(counts)
    size = len(names)
    left, right = (grid.ravel() for grid in np.meshgrid(np.arange(size), np.arange(size)))
    alike = similarity.of_pairs(names, left, right).reshape(size, size)
    expected = alike @ np.array([counts[name] for name in names], dtype=np.float64)
    order: Sequence[int] = np.argsort(-expected, kind="stable").tolist()
    np.fill_diagonal(alike, 0.0)
    nearest = alike.argmax(axis=0) if size else []
    synonyms = {names[i]: names[j] for i, j in enumerate(nearest) if alike[j, i] > 0}
    return tuple(names[i] for i in order), synonyms


def _first(counts: Counter[str]) -> str:
    """The most frequent; of several the first of the alphabet."""
    return min(counts, key=lambda name: (-counts[name], name))
