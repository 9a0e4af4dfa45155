"""The order that objects are brought into: it may depend on nothing but what the graph says."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scene_graph.cleaning import clean_columns, read_object, read_relationship
from scene_graph.graph import GraphColumns
from scene_graph.packing import pack

BOXES = [(0, 0, 5, 5), (0, 0, 5, 9), (2, 0, 5, 5)]
node = st.tuples(st.sampled_from(["man", "hat"]), st.sampled_from(BOXES))
Node = tuple[str, tuple[int, int, int, int]]
Edge = tuple[int, str, int]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Node], list[Edge]]:
    nodes = draw(st.lists(node, min_size=1, max_size=5))
    index = st.integers(0, len(nodes) - 1)
    edges = draw(st.lists(st.tuples(index, st.sampled_from(["on", "of"]), index), max_size=5))
    return nodes, sorted(set(edges))


def columns(nodes: list[Node], edges: list[Edge], numbers: list[int]) -> GraphColumns:
    ids = [f"{name}.{number}" for (name, _), number in zip(nodes, numbers, strict=True)]
    objects = [{"id": i, "bbox": list(box)} for i, (_, box) in zip(ids, nodes, strict=True)]
    relationships = [{"subject": ids[s], "predicate": p, "object": ids[o]} for s, p, o in edges]
    return clean_columns(
        map(read_object, objects), map(read_relationship, relationships), (10.0, 10.0)
    )[0]


def description(graph: GraphColumns, other: GraphColumns) -> object:
    """All that scoring could see of a graph packed in a batch, but the order of its triplets."""
    both, names = pack([other, graph])
    packed = both.part(1, 2)
    triplets = zip(packed.subjects, packed.predicates, packed.objects, strict=True)
    return (
        [names[code] for code in packed.categories],
        packed.boxes.tolist(),
        sorted((int(s), names[p], int(o)) for s, p, o in triplets),
    )


@given(scenes(), scenes(), st.randoms())
def test_order_and_numbers_leave_no_trace(
    scene: tuple[list[Node], list[Edge]], other: tuple[list[Node], list[Edge]], rng: random.Random
) -> None:
    """Objects that share category and box are common here: their triplets must tell them apart."""
    nodes, edges = scene
    place = list(range(len(nodes)))
    rng.shuffle(place)
    moved = sorted(range(len(nodes)), key=place.__getitem__)
    shuffled = [(place[s], p, place[o]) for s, p, o in edges]
    rng.shuffle(shuffled)
    numbers = rng.sample(range(100), len(nodes))
    plain = columns(nodes, edges, list(range(len(nodes))))
    renamed = columns([nodes[i] for i in moved], shuffled, numbers)
    neighbour = columns(*other, list(range(len(other[0]))))
    empty = GraphColumns()
    assert description(plain, empty) == description(renamed, neighbour)


def test_packing_remembers_where_objects_stood() -> None:
    graph = columns(
        [("man", BOXES[1]), ("hat", BOXES[0]), ("man", BOXES[0])], [(0, "on", 1)], [1, 2, 3]
    )
    packed, _ = pack([graph])
    assert packed.written.tolist() == [1, 2, 0]
    assert (packed.subjects.tolist(), packed.objects.tolist()) == ([2], [0])
