"""The figures of `benchmarks/reward_hole_vlm.py`."""

import pytest

from benchmarks.reward_hole_vlm import flood, pooled
from reward_service.scoring import make_scorer
from scene_data.templates import answer_text
from scene_data.toy.layouts import PREDICATES
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1000
from services.schemas.groups import GroupReference
from services.schemas.rewards import (
    ReferenceGraph,
    ReferenceObject,
    ReferenceRelationship,
    RewardGroup,
)
from tests.train_groups import completion, train_group

SCENE = toy_scene(3, 1, heldout=False)


def test_triplets_are_counted_over_all_answers_of_a_step() -> None:
    flooded = flood(SCENE)
    texts = [answer_text(one, RELATIVE_1000, width=SIDE, height=SIDE) for one in (SCENE, flooded)]
    asked = RewardGroup(
        group_id="g",
        image_size=(SIDE, SIDE),
        box_space=str(RELATIVE_1000),
        reference=ReferenceGraph(
            objects=[ReferenceObject(id=one.id, bbox=one.bbox) for one in SCENE.objects],
            relationships=[
                ReferenceRelationship(
                    subject=one.subject, predicate=one.predicate, object=one.object
                )
                for one in SCENE.relationships
            ],
        ),
        completions=texts,
    )
    rewards = make_scorer("r1-soft").score([asked])[0].rewards
    answers = [completion([1]).model_copy(update={"text": text}) for text in texts]
    group = train_group([1], answers).model_copy(
        update={
            "rewards": rewards,
            "reference": GroupReference(
                image_size=asked.image_size, box_space=asked.box_space, graph=asked.reference
            ),
        }
    )
    num_right, num_flooded = len(SCENE.relationships), len(flooded.relationships)
    written = num_right + num_flooded
    step = pooled([group])
    assert num_flooded == 2 * len(PREDICATES)
    assert step.written == pytest.approx(written / (2 * num_right))
    assert step.precision == pytest.approx(2 * num_right / written)
    assert step.f1 == pytest.approx(4 * num_right / (written + 2 * num_right))
    assert step.reward == pytest.approx(sum(one.total for one in rewards) / 20)
