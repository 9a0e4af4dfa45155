import io
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scene_data.dataset import open_dataset
from scene_data.toy.layouts import KEPT, MAX_HIDDEN, PREDICATES
from scene_data.toy.scenes import (
    BACKGROUND,
    CELL,
    COLOURS,
    NAMES,
    SIDE,
    ToyNoise,
    is_heldout_pair,
    make_toy,
    render,
    spoil,
    toy_scene,
)
from scene_graph.graph import SceneGraph

SCENES = [toy_scene(3, index, heldout=False) for index in range(300)]
HELDOUT = [toy_scene(3, index, heldout=True) for index in range(100)]
CROWDED = [toy_scene(3, index, heldout=False, level=2) for index in range(150)]
CROWDED_HELDOUT = [toy_scene(3, index, heldout=True, level=2) for index in range(30)]
PREDICATE_NOISE = ToyNoise(predicates=1.0)


def _pairs(graph: SceneGraph) -> list[tuple[str, str]]:
    return list(itertools.combinations([item.category for item in graph.objects], 2))


def _pixels(graph: SceneGraph) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(render(graph))))


def test_a_scene_is_a_function_of_seed_index_and_split() -> None:
    assert toy_scene(3, 5, heldout=False) == SCENES[5]
    others = [toy_scene(4, 5, heldout=False), toy_scene(3, 6, heldout=False), HELDOUT[5]]
    assert all(other != SCENES[5] for other in others)


def test_heldout_pairs_are_only_in_heldout_scenes() -> None:
    assert sum(is_heldout_pair(a, b) for a, b in itertools.combinations(NAMES, 2)) == 10
    for scenes, heldout in ((SCENES, HELDOUT), (CROWDED, CROWDED_HELDOUT)):
        assert not any(is_heldout_pair(a, b) for graph in scenes for a, b in _pairs(graph))
        assert all(any(is_heldout_pair(a, b) for a, b in _pairs(graph)) for graph in heldout)


@pytest.mark.parametrize(
    ("scenes", "predicates"), [(SCENES, {*PREDICATES}), (CROWDED, {*PREDICATES, *KEPT})]
)
def test_every_name_and_predicate_is_in_training(
    scenes: list[SceneGraph], predicates: set[str]
) -> None:
    assert {item.category for graph in scenes for item in graph.objects} == set(NAMES)
    assert {r.predicate for graph in scenes for r in graph.relationships} == predicates


def test_predicates_of_the_second_level_have_a_long_tail() -> None:
    shares = Counter(r.predicate for graph in CROWDED for r in graph.relationships)
    assert sum(shares[predicate] for predicate in ("left of", "right of")) > shares.total() / 2
    for predicate in ("on", "attached to"):
        assert 0 < shares[predicate] < 0.05 * shares.total()


def test_the_second_level_has_three_to_five_shapes_about_equally_often() -> None:
    sizes = Counter(len(graph.objects) for graph in CROWDED)
    assert sizes.keys() == {3, 4, 5}
    assert min(sizes.values()) > len(CROWDED) / 5


def test_what_hides_a_part_of_a_shape_is_smaller_of_another_colour_and_alone() -> None:
    hidden = 0
    for graph in CROWDED + CROWDED_HELDOUT:
        over: Counter[str] = Counter()
        for a, b in itertools.combinations(graph.objects, 2):
            low, high = np.maximum(a.bbox[:2], b.bbox[:2]), np.minimum(a.bbox[2:], b.bbox[2:])
            if (low < high).all():
                small, large = sorted((a, b), key=lambda item: item.bbox[2] - item.bbox[0])
                side = large.bbox[2] - large.bbox[0]
                assert small.bbox[2] - small.bbox[0] < side
                assert (high - low).prod() <= MAX_HIDDEN * side**2
                assert a.category.split()[0] != b.category.split()[0]
                over[large.id] += 1
        assert all(count == 1 for count in over.values())
        hidden += len(over)
    assert hidden > 30


def test_boxes_lie_on_the_grid_inside_the_image() -> None:
    boxes = np.array([item.bbox for graph in SCENES + CROWDED for item in graph.objects])
    assert (boxes % CELL == 0).all()
    assert boxes.min() >= 0
    assert boxes.max() <= SIDE


def test_relationships_are_geometrically_true() -> None:
    for graph in SCENES + HELDOUT + CROWDED + CROWDED_HELDOUT:
        box = {item.id: np.array(item.bbox) for item in graph.objects}
        assert len(graph.relationships) == len(graph.objects) - 1
        for r in graph.relationships:
            s, o = box[r.subject], box[r.object]
            right, down = (o[:2] + o[2:]) - (s[:2] + s[2:])
            holds = {
                "inside": (s[:2] > o[:2]).all() and (s[2:] < o[2:]).all(),
                "left of": right >= abs(down),
                "right of": -right >= abs(down),
                "above": down > abs(right),
                "in front of": (s[:2] < o[2:]).all() and (o[:2] < s[2:]).all(),
                "on": s[3] == o[1] and s[0] < o[2] and o[0] < s[2],
                "attached to": s[1] < o[3] and o[1] < s[3] and (s[0] == o[2] or s[2] == o[0]),
            }
            assert holds[r.predicate], (r, s, o)


def test_shapes_overlap_only_where_one_is_inside_the_other() -> None:
    for graph in SCENES:
        for a, b in itertools.combinations([np.array(o.bbox) for o in graph.objects], 2):
            apart = (a[2:] <= b[:2]).any() or (b[2:] <= a[:2]).any()
            nested = ((a < b)[:2].all() and (b < a)[2:].all()) or (
                (b < a)[:2].all() and (a < b)[2:].all()
            )
            assert apart or nested


def test_the_picture_shows_each_object_where_its_box_says() -> None:
    for graph in SCENES[:50] + CROWDED[:50]:
        pixels = _pixels(graph)
        assert pixels.shape == (SIDE, SIDE, 3)
        covered = np.zeros((SIDE, SIDE), dtype=bool)
        for item in graph.objects:
            x1, y1, x2, y2 = (int(v) for v in item.bbox)
            colour = COLOURS[item.category.split()[0]]
            shown = (pixels[y1:y2, x1:x2] == colour).all(axis=-1)
            assert shown[-1].any() or shown[:, 0].any(), item
            assert shown.any(axis=1).sum() >= CELL, item
            covered[y1:y2, x1:x2] = True
        assert (pixels[~covered] == BACKGROUND).all()


def test_shapes_differ_in_the_picture() -> None:
    item = SCENES[0].objects[0]
    shares = [
        (_pixels(SceneGraph(objects=(replace(item, id=f"red {shape}.1"),), relationships=()))
         == COLOURS["red"]).all(axis=-1).mean()
        for shape in ("square", "circle", "triangle")
    ]  # fmt: skip
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize(
    "noise", [ToyNoise(names=0.3), ToyNoise(boxes=0.3), ToyNoise(predicates=0.3)]
)
def test_noise_spoils_its_own_part_at_about_its_rate(noise: ToyNoise) -> None:
    rng = np.random.default_rng(0)
    spoilt = [spoil(graph, noise, rng) for graph in SCENES]
    changed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for before, after in zip(SCENES, spoilt, strict=True):
        for a, b in zip(before.objects, after.objects, strict=True):
            changed.update(names=a.id != b.id, boxes=a.bbox != b.bbox)
            total.update(names=1, boxes=1)
        for r, t in zip(before.relationships, after.relationships, strict=True):
            changed.update(predicates=r.predicate != t.predicate)
            total.update(predicates=1)
    share = {part: changed[part] / total[part] for part in total}
    for part in ("names", "boxes", "predicates"):
        assert share[part] == pytest.approx(getattr(noise, part), abs=0.05)


def test_spoilt_graphs_are_well_formed() -> None:
    rng = np.random.default_rng(0)
    for graph in SCENES:
        spoilt = spoil(graph, ToyNoise(names=1, boxes=1, predicates=1), rng)
        ids = {item.id for item in spoilt.objects}
        assert len(ids) == len(graph.objects)
        assert all({r.subject, r.object} <= ids for r in spoilt.relationships)
        assert all(0 <= v <= SIDE for item in spoilt.objects for v in item.bbox)


def test_files_hold_the_scenes_and_noise_only_touches_training(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=7, num_heldout=5, seed=3, noise=ToyNoise(names=1.0))
    train = open_dataset(tmp_path / "train.parquet")
    heldout = open_dataset(tmp_path / "heldout.parquet")
    assert [sample.graph for sample in heldout] == HELDOUT[:5]
    assert [sample.image_bytes for sample in train] == [render(graph) for graph in SCENES[:7]]
    assert all(s.graph != clean for s, clean in zip(train, SCENES[:7], strict=True))
    assert (train[0].width, train[0].height) == (SIDE, SIDE)


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_toy(tmp_path / name, num_train=20, num_heldout=3, noise=PREDICATE_NOISE)
    assert (tmp_path / "a/train.parquet").read_bytes() == (
        tmp_path / "b/train.parquet"
    ).read_bytes()
