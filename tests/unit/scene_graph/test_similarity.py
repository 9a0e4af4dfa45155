"""What holds for every similarity, and what a table adds."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_graph.similarity import ExactSimilarity, Similarity, TableSimilarity

NAMES = ["man", "person", "horse", "pony", "tree", "bush"]
OUTSIDE = ["unicorn", "", "\ud800"]

Pairs = dict[tuple[str, str], float]


@st.composite
def tables(draw: st.DrawFn) -> Pairs:
    """Each pair of two different names at most once, in either order."""
    pairs: Pairs = {}
    for i, left in enumerate(NAMES):
        for right in NAMES[i + 1 :]:
            pair = draw(st.sampled_from([(left, right), (right, left)]))
            if draw(st.booleans()):
                pairs[pair] = draw(st.floats(0, 1))
    return pairs


BATCHES = st.lists(st.sampled_from(NAMES + OUTSIDE), min_size=1, max_size=8, unique=True)
SIMILARITIES = st.one_of(
    st.just(ExactSimilarity()), tables().map(lambda pairs: TableSimilarity(NAMES, pairs))
)


def all_pairs(similarity: Similarity, names: list[str]) -> dict[tuple[str, str], float]:
    left, right = (index.ravel() for index in np.indices((len(names), len(names))))
    values = similarity.of_pairs(names, left, right)
    assert values.shape == left.shape
    keys = [(names[i], names[j]) for i, j in zip(left, right, strict=True)]
    return dict(zip(keys, values.tolist(), strict=True))


@given(SIMILARITIES, BATCHES)
def test_similarity_is_symmetric_bounded_and_one_for_equal_names(
    similarity: Similarity, names: list[str]
) -> None:
    values = all_pairs(similarity, names)
    for (left, right), value in values.items():
        assert 0 <= value <= 1
        assert value == values[right, left]
        assert left != right or value == 1


@given(SIMILARITIES, BATCHES, st.randoms())
def test_pair_does_not_depend_on_its_batch(
    similarity: Similarity, names: list[str], random: Random
) -> None:
    alone = {
        (left, right): all_pairs(similarity, [left, right] if left != right else [left])[
            left, right
        ]
        for left in names
        for right in names
    }
    shuffled = list(names)
    random.shuffle(shuffled)
    assert all_pairs(similarity, names) == all_pairs(similarity, shuffled) == alone


@given(tables())
def test_table_gives_back_every_pair_it_was_made_of(pairs: Pairs) -> None:
    values = all_pairs(TableSimilarity(NAMES, pairs), NAMES + OUTSIDE)
    for (left, right), value in values.items():
        listed = pairs.get((left, right), pairs.get((right, left), 0.0))
        assert value == (1.0 if left == right else listed)


def test_name_outside_of_the_table_is_compared_exactly() -> None:
    table = TableSimilarity(["man", "person"], {("man", "person"): 0.8})
    values = all_pairs(table, ["man", "unicorn", "pegasus"])
    assert values["unicorn", "unicorn"] == 1
    assert values["unicorn", "pegasus"] == 0
    assert values["unicorn", "man"] == 0


def test_no_pairs_are_no_values() -> None:
    none = np.array([], dtype=np.int64)
    for similarity in (ExactSimilarity(), TableSimilarity(["man"], {})):
        assert similarity.of_pairs([], none, none).shape == (0,)


@given(tables(), st.randoms())
def test_version_is_of_the_content_and_not_of_its_order(pairs: Pairs, random: Random) -> None:
    names, items = list(NAMES), list(pairs.items())
    random.shuffle(names)
    random.shuffle(items)
    turned = {(right, left): value for (left, right), value in items}
    assert TableSimilarity(names, turned).version == TableSimilarity(NAMES, pairs).version


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["man", "person"], {("man", "person"): 0.81}),
        (["man", "person"], {}),
        (["man", "person", "horse"], {("man", "person"): 0.8}),
        (["man", "people"], {("man", "people"): 0.8}),
    ],
)
def test_version_changes_with_the_content(names: list[str], pairs: Pairs) -> None:
    table = TableSimilarity(["man", "person"], {("man", "person"): 0.8})
    assert TableSimilarity(names, pairs).version != table.version
