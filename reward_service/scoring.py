"""Scores completions against their reference. Pure: the same request gives the same rewards."""

from reward_service.rubrics import Rubric
from reward_service.terms import TERMS, Comparison
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.matching import GraphArrays, match_objects, one_to_one, triplet_hits
from scene_graph.parsing import ParsedCompletion, clean_graph, parse_completion
from services.schemas.rewards import Matched, Reward, RewardGroup, ScoredGroup


def score_group(group: RewardGroup, rubric: Rubric) -> ScoredGroup:
    """Rewards of a group's completions, in their order.

    The reference is cleaned by the rules for predictions (`clean_graph`): what is wrong in it is
    dropped (of a duplicate id the first stays), so it can neither raise nor be matched.
    """
    reference = GraphArrays.from_graph(reference_graph(group)[0])
    return ScoredGroup(
        group_id=group.group_id,
        rewards=[
            _score(parse_completion(text, group.box_space), reference, group, rubric)
            for text in group.completions
        ],
    )


def reference_graph(group: RewardGroup) -> tuple[SceneGraph, dict[str, int]]:
    """The group's cleaned reference, boxes in fractions, and what was dropped from it by reason."""
    width, height = group.image_size
    graph = SceneGraph(
        objects=tuple(SceneObject(id=o.id, bbox=o.bbox) for o in group.reference.objects),
        relationships=tuple(
            Relationship(subject=r.subject, predicate=r.predicate, object=r.object)
            for r in group.reference.relationships
        ),
    )
    clean, dropped = clean_graph(graph, f"pixels:{width}x{height}")
    return clean, dict(dropped)


def _score(
    parsed: ParsedCompletion, reference: GraphArrays, group: RewardGroup, rubric: Rubric
) -> Reward:
    if parsed.status != "ok":
        return Reward(
            total=0.0,
            status=parsed.status,
            breakdown=dict.fromkeys(rubric.terms, 0.0),
            matched=Matched(objects=0, relationships=0),
            truncated=parsed.truncated,
        )
    comparison = _compare(parsed, reference, group.require_thinking)
    breakdown = {name: TERMS[name].function(comparison) for name in rubric.terms}
    return Reward(
        total=sum(rubric.terms[name] * value for name, value in breakdown.items()),
        status="ok",
        breakdown=breakdown,
        matched=_matched(comparison),
        dropped=parsed.dropped,
    )


def _compare(
    parsed: ParsedCompletion, reference: GraphArrays, require_thinking: bool
) -> Comparison:
    predicted = GraphArrays.from_graph(parsed.graph)
    matching = match_objects(predicted, reference)
    hits = triplet_hits(predicted, reference, matching.similarity, matching.iou)
    return Comparison(
        parsed=parsed,
        require_thinking=require_thinking,
        predicted=predicted,
        reference=reference,
        matching=matching,
        hit_triplets=one_to_one(hits),
    )


def _matched(c: Comparison) -> Matched:
    """Matched objects with an equal name and IoU >= 0.5, and reference triplets that were hit."""
    m = c.matching
    same_name = m.similarity[m.predicted, m.reference] >= 1.0
    good_box = m.iou[m.predicted, m.reference] >= 0.5
    return Matched(objects=int((same_name & good_box).sum()), relationships=len(c.hit_triplets))
