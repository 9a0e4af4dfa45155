"""From an image as annotated to the graph that is written."""

from collections import Counter
from collections.abc import Hashable
from pathlib import Path

from scene_data.conversion.names import NameMap
from scene_data.conversion.raw import Box, RawImage, RawObject
from scene_data.vocabulary import OpenVocabulary, Vocabulary, load_vocabulary, training_vocabulary
from scene_graph.graph import Relationship, SceneGraph, SceneObject

_ALL = Vocabulary((), ())


class GraphRules:
    """Which names are kept, and how they are written.

    Args:
        vocabulary: `vg150` or `psg`; None keeps all names.
        object_aliases: A file as `scene_data.conversion.names` reads it.
        predicate_aliases: The same.
        open_vocabulary: Leave out VG150's novel names: `scene_data.vocabulary`.
    """

    def __init__(
        self,
        *,
        vocabulary: str | None = None,
        object_aliases: Path | None = None,
        predicate_aliases: Path | None = None,
        open_vocabulary: OpenVocabulary | None = None,
    ) -> None:
        names = load_vocabulary(vocabulary) if vocabulary else _ALL
        base = training_vocabulary(open_vocabulary) if open_vocabulary else _ALL
        self._objects = NameMap(names.objects or None, object_aliases)
        self._predicates = NameMap(names.predicates or None, predicate_aliases)
        self._base_objects = NameMap(base.objects or None)
        self._base_predicates = NameMap(base.predicates or None)

    def graph(self, raw: RawImage, size: tuple[int, int], dropped: Counter[str]) -> SceneGraph:
        """The part of an image's annotations that is kept; the rest is counted by reason.

        Args:
            raw: As annotated.
            size: Width and height of the image, which boxes are cut to.
            dropped: Added to.
        """
        kept: dict[Hashable, tuple[str, Box]] = {}
        for item in raw.objects:
            if (found := self._object(item, size, dropped)) is not None:
                kept[item.key] = found
        objects = dict(zip(kept, _numbered(kept), strict=True))
        edges = self._edges(raw, objects, dropped)
        return SceneGraph(objects=tuple(objects.values()), relationships=tuple(edges))

    def _object(
        self, item: RawObject, size: tuple[int, int], dropped: Counter[str]
    ) -> tuple[str, Box] | None:
        name, box = self._objects(item.names), _clipped(item.bbox, size)
        if name is None:
            dropped["object_outside_vocabulary"] += 1
        elif self._base_objects((name,)) is None:
            dropped["object_with_novel_name"] += 1
        elif box[0] >= box[2] or box[1] >= box[3]:
            dropped["empty_box"] += 1
        else:
            if box != item.bbox:
                dropped["part_of_box_outside_image"] += 1
            return name, box
        return None

    def _edges(
        self, raw: RawImage, objects: dict[Hashable, SceneObject], dropped: Counter[str]
    ) -> dict[Relationship, None]:
        edges: dict[Relationship, None] = {}
        annotated = {item.key for item in raw.objects}
        for item in raw.relationships:
            predicate, reason = self._predicates(item.names), None
            subject, object_ = objects.get(item.subject), objects.get(item.object)
            if not {item.subject, item.object} <= annotated:
                reason = "dangling_relationship"
            elif subject is None or object_ is None:
                reason = "relationship_of_dropped_object"
            elif subject is object_:
                reason = "relationship_with_itself"
            elif predicate is None:
                reason = "predicate_outside_vocabulary"
            elif self._base_predicates((predicate,)) is None:
                reason = "novel_predicate"
            else:
                edge = Relationship(subject=subject.id, predicate=predicate, object=object_.id)
                reason = "repeated_relationship" if edge in edges else None
                edges[edge] = None
            if reason is not None:
                dropped[reason] += 1
        return edges


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    x1, y1, x2, y2 = box
    width, height = size
    return (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))


def _numbered(kept: dict[Hashable, tuple[str, Box]]) -> list[SceneObject]:
    """Objects with ids `name.number`: their own where all names stayed, else counted from 1.

    An id's name ends at its first dot, so a name gives up its own: `u.s. flag` is `us flag`.
    """
    names = [name.replace(".", "") for name, _ in kept.values()]
    ids = [f"{name}.{number}" for number, name in enumerate(names, start=1)]
    own = [key for key in kept if isinstance(key, str)]
    whole = [SceneObject(id=key, bbox=(0, 0, 0, 0)).category for key in own]
    if len(own) == len(kept) and whole == [name for name, _ in kept.values()]:
        ids = own
    boxes = (box for _, box in kept.values())
    return [SceneObject(id=name, bbox=box) for name, box in zip(ids, boxes, strict=True)]
