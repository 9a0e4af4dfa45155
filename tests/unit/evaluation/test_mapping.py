"""Predicted names find their place in a vocabulary, and every step is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.scoring.mapping import MIN_COSINE, Mapper, map_graphs, map_names
from reward_service.similarity.embedding import EmbeddingSimilarity
from scene_data.vocabulary import Aliases, load_aliases, load_vocabulary
from scene_graph.graph import normalise_name
from scene_graph.metrics.table import ImageGraph

VECTORS = {"horse": (1.0, 0.0), "tree": (0.0, 1.0), "pony": (0.9, 0.3), "lamp": (0.7, 0.7)}
SIMILARITY = EmbeddingSimilarity(lambda name: np.array(VECTORS[name], dtype=np.float32), "of test")


def test_each_step_takes_what_the_earlier_ones_left() -> None:
    names = ["horse", "steed", "pony", "lamp", "ghost"]
    aliases = {"steed": "horse", "tree": "horse", "ghost": "spirit"}
    mapped = map_names(names[:4], ["tree", "horse"], aliases, SIMILARITY)
    assert mapped == {
        "horse": ("horse", "exact"),
        "steed": ("horse", "alias"),
        "pony": ("horse", "embedding"),  # cosine 0.949
        "lamp": ("lamp", "unmapped"),  # cosine 0.707 to both
    }
    assert 0.71 < MIN_COSINE < 0.94
    # An alias that leads out of the vocabulary does not count.
    assert map_names(["ghost"], ["tree", "horse"], aliases) == {"ghost": ("ghost", "unmapped")}


def test_shares_are_of_all_names_that_were_written() -> None:
    graphs = [
        ImageGraph(names=["steed", "horse", "ghost"], subjects=[0], predicates=["on"], objects=[1]),
        ImageGraph(names=["steed"]),
    ]
    mapper = Mapper(
        vocabulary=load_vocabulary("vg150").normalised(),
        aliases=Aliases({"steed": "horse"}, {}),
    )
    shares = map_graphs(graphs, mapper)
    assert shares["objects"] == {"exact": 0.25, "alias": 0.5, "embedding": 0, "unmapped": 0.25}
    assert shares["predicates"]["exact"] == 1
    assert graphs[0].names == ["horse", "horse", "ghost"]
    assert graphs[1].names == ["horse"]


@given(st.lists(st.sampled_from(["man", "men", "sky", "sky other merged", "tv", "blob"])))
def test_shares_add_up_and_mapping_twice_changes_nothing(names: list[str]) -> None:
    mapper = Mapper(vocabulary=load_vocabulary("psg").normalised(), aliases=load_aliases("psg"))
    graph = ImageGraph(names=names)
    shares = map_graphs([graph], mapper)["objects"]
    assert sum(shares.values()) == pytest.approx(1 if names else 0)
    once = list(graph.names)
    again = map_graphs([graph], mapper)["objects"]
    assert graph.names == once
    assert again["alias"] == 0


@pytest.mark.parametrize("name", ["vg150", "psg"])
def test_shipped_aliases_lead_into_the_vocabulary(name: str) -> None:
    vocabulary, aliases = load_vocabulary(name).normalised(), load_aliases(name)
    for known, found in (
        (vocabulary.objects, aliases.objects),
        (vocabulary.predicates, aliases.predicates),
    ):
        assert set(found.values()) <= set(known)
        assert not found.keys() & set(known)
        assert all(alias == normalise_name(alias) for alias in found)


def test_plain_forms_of_psg_names() -> None:
    objects = load_aliases("psg").objects
    plain = {
        "sky": "sky other merged",
        "trees": "tree merged",
        "wooden floor": "floor wood",
        "window": "window other",
        "girl": "person",
    }
    assert {name: objects[name] for name in plain} == plain
