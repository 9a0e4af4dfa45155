"""One graph of several answers."""

import pytest

from evaluation.inference.consensus import agreed
from evaluation.reading.lines import GraphLine, LineObject, LineRelationship


def _answer(*objects: LineObject, edges: tuple[tuple[str, str, str], ...] = ()) -> GraphLine:
    return GraphLine(
        image_id="7",
        width=100,
        height=100,
        objects=list(objects),
        relationships=[LineRelationship(*edge) for edge in edges],
    )


MAN, HORSE = LineObject("man.1", (10, 10, 30, 60)), LineObject("horse.1", (5, 30, 60, 90))
MOVED = LineObject("man.4", (10, 10, 32, 62))


def test_what_half_of_the_answers_say_is_kept_with_its_share() -> None:
    objects, relationships = agreed(
        [
            _answer(MAN, HORSE, edges=(("man.1", "on", "horse.1"),)),
            _answer(HORSE, MOVED, edges=(("man.4", "on", "horse.1"),)),
            _answer(MAN, LineObject("tree.1", (0, 0, 5, 5))),
        ]
    )
    assert objects == [
        LineObject("man.1", (10, 10, 30, 60), 1.0),
        LineObject("horse.1", (5, 30, 60, 90), 2 / 3),
    ]
    assert relationships == [LineRelationship("man.1", "on", "horse.1", 2 / 3)]


def test_two_of_a_name_stay_two_and_each_takes_the_box_that_it_overlaps_most() -> None:
    left, right = LineObject("man.1", (0, 0, 40, 40)), LineObject("man.2", (15, 0, 55, 40))
    swapped = [LineObject("man.1", (16, 0, 55, 40)), LineObject("man.2", (1, 0, 40, 40))]
    edge = ("man.1", "near", "man.2")
    objects, relationships = agreed(
        [_answer(left, right, edges=(edge,)), _answer(*swapped, edges=(edge,))]
    )
    assert [(o.id, o.bbox, o.score) for o in objects] == [
        ("man.1", (0.5, 0, 40, 40), 1.0),
        ("man.2", (15.5, 0, 55, 40), 1.0),
    ]
    # In the second answer the two are named the other way round.
    assert {(r.subject, r.object, r.score) for r in relationships} == {
        ("man.1", "man.2", 0.5),
        ("man.2", "man.1", 0.5),
    }


def test_a_relationship_that_an_answer_repeats_counts_once() -> None:
    edge = ("man.1", "on", "horse.1")
    _, relationships = agreed([_answer(MAN, HORSE, edges=(edge, edge)), _answer(MAN, HORSE)])
    assert [r.score for r in relationships] == [0.5]


def test_names_without_boxes_agree_by_their_number() -> None:
    man, horse = LineObject("man.1"), LineObject("horse.1")
    objects, relationships = agreed(
        [_answer(man, horse, edges=(("man.1", "on", "horse.1"),))] * 2 + [_answer(horse)]
    )
    assert [(o.id, o.bbox, o.score) for o in objects] == [
        ("man.1", None, pytest.approx(2 / 3)),
        ("horse.1", None, 1.0),
    ]
    assert len(relationships) == 1
