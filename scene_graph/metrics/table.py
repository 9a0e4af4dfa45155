"""The graphs of many images as flat arrays, names as codes: what every metric works on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from scene_graph.boxes import Boxes
from scene_graph.matching import Flags
from scene_graph.similarity import Floats, Indices


@dataclass(slots=True, kw_only=True)
class ImageGraph:
    """One image's graph, as it was predicted or annotated; nothing is dropped, nothing unique.

    Not frozen, for speed; nothing changes it.

    Example: a man on a horse is `names=["man", "horse"], boxes=[0, 0, 5, 9, 0, 3, 9, 9],
    subjects=[0], predicates=["on"], objects=[1]`.
    """

    names: list[str] = field(default_factory=list)
    """[N] normalised, without number"""
    boxes: list[float] = field(default_factory=list)
    """[4N] x1, y1, x2, y2 in pixels of the image, or in another unit that `size` is in"""
    scores: list[float] = field(default_factory=list)
    """[N], or empty where nobody gave any, as a language model does not: then all count as 1"""
    subjects: list[int] = field(default_factory=list)
    """[E] index among the N objects"""
    predicates: list[str] = field(default_factory=list)
    """[E] normalised"""
    objects: list[int] = field(default_factory=list)
    """[E]"""
    relation_scores: list[float] = field(default_factory=list)
    """[E], or empty as `scores`"""
    size: tuple[float, float] = (1.0, 1.0)
    """Width and height of the image in the boxes' unit: 1 and 1 where they are fractions; the
    same in prediction and reference"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTable:
    """B images with O objects and E relations, image after image, in the order they were given."""

    num_images: int
    sizes: Floats
    """[B, 2] width and height in the boxes' unit"""
    names: tuple[str, ...]
    """Object names, by code"""
    predicate_names: tuple[str, ...]
    object_image: Indices
    """[O] ascending"""
    object_names: Indices
    """[O] codes"""
    boxes: Boxes
    """[O, 4] pixels"""
    scores: Floats
    """[O]"""
    relation_image: Indices
    """[E] ascending"""
    subjects: Indices
    """[E] among the O objects"""
    predicates: Indices
    """[E] codes"""
    objects: Indices
    """[E]"""
    relation_scores: Floats
    """[E] of the relation alone, without its objects'"""
    objects_have_scores: bool
    """Whether an image's objects came with scores; else all of `scores` are 1"""
    relations_have_scores: bool
    """Likewise"""

    @property
    def triplets(self) -> tuple[Indices, Indices, Indices]:
        """[E] codes of the names of subjects, of predicates and of the names of objects."""
        names = self.object_names
        return names[self.subjects], self.predicates, names[self.objects]

    def with_relations(self, chosen: Flags | Indices) -> "GraphTable":
        """With those relations alone that [E] flags or indices name, in this order."""
        return replace(
            self,
            relation_image=self.relation_image[chosen],
            subjects=self.subjects[chosen],
            predicates=self.predicates[chosen],
            objects=self.objects[chosen],
            relation_scores=self.relation_scores[chosen],
        )

    @property
    def relations_of_image(self) -> Indices:
        """[B] how many relations each image has."""
        return np.bincount(self.relation_image, minlength=self.num_images)

    @property
    def objects_of_image(self) -> Indices:
        """[B] how many objects each image has."""
        return np.bincount(self.object_image, minlength=self.num_images)


def tabulate(
    predicted: Sequence[ImageGraph], reference: Sequence[ImageGraph]
) -> tuple[GraphTable, GraphTable]:
    """Predictions and references of the same images, in the same order, with the same codes.

    Codes follow the alphabet, so they do not depend on the order of images.
    """
    both = [*predicted, *reference]
    names = sorted({name for graph in both for name in graph.names})
    predicates = sorted({name for graph in both for name in graph.predicates})
    return _table(predicted, names, predicates), _table(reference, names, predicates)


def _table(graphs: Sequence[ImageGraph], names: list[str], predicates: list[str]) -> GraphTable:
    name_code = {name: code for code, name in enumerate(names)}
    predicate_code = {name: code for code, name in enumerate(predicates)}
    num_objects = np.array([len(g.names) for g in graphs], dtype=np.int64)
    num_relations = np.array([len(g.predicates) for g in graphs], dtype=np.int64)
    relation_image = np.arange(len(graphs)).repeat(num_relations)
    first_object = (num_objects.cumsum() - num_objects)[relation_image]
    return GraphTable(
        num_images=len(graphs),
        sizes=_floats(chain.from_iterable(g.size for g in graphs)).reshape(-1, 2),
        names=tuple(names),
        predicate_names=tuple(predicates),
        object_image=np.arange(len(graphs)).repeat(num_objects),
        object_names=_integers([name_code[n] for g in graphs for n in g.names]),
        boxes=_floats(chain.from_iterable(g.boxes for g in graphs)).reshape(-1, 4),
        scores=_floats(s for g in graphs for s in g.scores or [1.0] * len(g.names)),
        relation_image=relation_image,
        subjects=first_object + _integers([s for g in graphs for s in g.subjects]),
        predicates=_integers([predicate_code[p] for g in graphs for p in g.predicates]),
        objects=first_object + _integers([o for g in graphs for o in g.objects]),
        relation_scores=_floats(
            s for g in graphs for s in g.relation_scores or [1.0] * len(g.predicates)
        ),
        objects_have_scores=any(g.scores for g in graphs),
        relations_have_scores=any(g.relation_scores for g in graphs),
    )


def _integers(values: list[int]) -> Indices:
    return np.array(values, dtype=np.int64)


def _floats(values: Iterable[float]) -> NDArray[np.float64]:
    return np.fromiter(values, dtype=np.float64)
