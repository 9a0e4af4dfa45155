"""How datasets' columns and TRL's completions become groups; `tests/integration` has TRL itself."""

import io
import json
from typing import Any

import pytest
from PIL import Image

from reward_service.scoring import make_scorer
from reward_service.trl.reward import SceneGraphReward, scene_graph_reward
from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1000
from services.errors import InvalidInputError

BEST = make_scorer("balanced").max_total
MAN = {"id": "man.1", "bbox": [0, 0, 50, 100]}
HORSE = {"id": "horse.1", "bbox": [50, 0, 100, 100]}
RIDING = {"subject": "man.1", "predicate": "riding", "object": "horse.1"}
REFERENCE = {"objects": [MAN, HORSE], "relationships": [RIDING]}


def answer(box: list[int] | None = None) -> str:
    """The right answer in `relative_1000`, for an image of 100 x 100."""
    boxes = [box or [0, 0, 500, 1000], [500, 0, 1000, 1000]]
    objects = [{"id": i, "bbox": b} for i, b in zip(["man.1", "horse.1"], boxes, strict=True)]
    return f"<answer>{json.dumps({'objects': objects, 'relationships': [RIDING]})}</answer>"


def columns(count: int, **changes: Any) -> dict[str, Any]:
    """As TRL passes them: equal rows, and things that are no columns."""
    found: dict[str, Any] = {name: [value] * count for name, value in REFERENCE.items()}
    found |= {
        "image_size": [[100, 100]] * count,
        "prompts": ["p"] * count,
        "trainer_state": object(),
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def png(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, format="PNG")
    return stream.getvalue()


def test_an_answer_as_good_as_sfts_target_earns_the_maximum() -> None:
    graph = toy_scene(5, 0, heldout=False)
    edges = [
        {"subject": r.subject, "predicate": r.predicate, "object": r.object}
        for r in graph.relationships
    ]
    rewards = scene_graph_reward(
        completions=[answer_text(graph, RELATIVE_1000, width=SIDE, height=SIDE)],
        objects=[[{"id": o.id, "bbox": list(o.bbox)} for o in graph.objects]],
        relationships=[edges],
        width=[SIDE],
        height=[SIDE],
    )
    assert rewards == [pytest.approx(BEST)]


@pytest.mark.parametrize(
    "completion",
    [
        answer(),
        [{"role": "assistant", "content": answer()}],
        [{"role": "assistant", "content": [{"type": "text", "text": answer()}]}],
        [
            {"role": "assistant", "content": "let me look"},
            {"role": "assistant", "content": answer()},
        ],
    ],
)
def test_every_form_of_a_completion_is_read(completion: Any) -> None:
    assert scene_graph_reward(completions=[completion], **columns(1)) == [pytest.approx(BEST)]


@pytest.mark.parametrize("completion", ["", [], [{"role": "assistant", "content": None}]])
def test_an_empty_completion_earns_nothing(completion: Any) -> None:
    assert scene_graph_reward(completions=[completion], **columns(1)) == [0]


@pytest.mark.parametrize(
    "size",
    [
        {"image_size": [[100, 100]]},
        {"width": [100], "height": [100]},
        {"image": [Image.new("RGB", (100, 100))]},
        {"image": [{"bytes": png(100, 100), "path": None}]},
        {"images": [[Image.new("RGB", (100, 100))]]},
        {"image_size": [[100, 100]], "image": [Image.new("RGB", (7, 7))]},
    ],
)
def test_the_size_comes_from_whichever_column_there_is(size: dict[str, Any]) -> None:
    given = columns(1, image_size=None) | size
    assert scene_graph_reward(completions=[answer()], **given) == [pytest.approx(BEST)]


def test_lists_may_be_json_and_have_fields_that_nobody_looks_at() -> None:
    objects = json.dumps([item | {"area": 5} for item in (MAN, HORSE)])
    given = columns(1, objects=[objects], relationships=[json.dumps([RIDING])])
    assert scene_graph_reward(completions=[answer()], **given) == [pytest.approx(BEST)]


def test_rewards_keep_their_order_among_mixed_references() -> None:
    other = [MAN, HORSE | {"bbox": [50, 0, 100, 60]}]
    texts = [answer(), "no", answer(), answer([0, 0, 400, 1000]), answer()]
    given = columns(5, objects=[[MAN, HORSE], [MAN, HORSE], other, [MAN, HORSE], other])
    alone = [
        scene_graph_reward(completions=[text], **columns(1, objects=[objects]))[0]
        for text, objects in zip(texts, given["objects"], strict=True)
    ]
    assert len(set(alone)) == 4
    assert scene_graph_reward(completions=texts, **given) == pytest.approx(alone)


def test_more_completions_of_one_prompt_than_a_group_holds_are_scored() -> None:
    texts = [answer()] * 300 + ["no"] * 5
    rewards = scene_graph_reward(completions=texts, **columns(len(texts)))
    assert rewards == pytest.approx([BEST] * 300 + [0.0] * 5)


def test_the_column_box_space_comes_before_the_constructors() -> None:
    function = SceneGraphReward(box_space="relative_1")
    given = columns(2, box_space=["relative_1000", None])
    rewards = function(completions=[answer(), answer()], **given)
    assert rewards[0] == pytest.approx(BEST)
    assert rewards[1] is not None
    assert rewards[1] < BEST


def test_a_row_without_a_reference_has_no_reward() -> None:
    given = columns(2, objects=[None, [MAN, HORSE]])
    rewards = SceneGraphReward()(completions=[answer(), answer()], **given)
    assert rewards == [None, pytest.approx(BEST)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": None}, "no objects"),
        ({"objects": None, "relationships": None}, "no objects and no relationships"),
        ({"image_size": None}, "image_size (or width and height, or image)"),
        ({"image_size": None, "width": [100]}, "image_size (or width and height, or image)"),
    ],
)
def test_missing_columns_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match="its columns are") as caught:
        scene_graph_reward(completions=[answer()], **columns(1, **changes))
    assert message in caught.value.message


BROKEN = [{"objects": ["not JSON"]}, {"objects": ["7"]}, {"objects": [[{"id": "man.1"}]]}]
BROKEN += [
    {"image_size": [[0, 5]]},
    *(
        {"image_size": None, "image": [image]}
        for image in ({"bytes": b"x", "path": None}, {"bytes": None, "path": None}, {})
    ),
]


@pytest.mark.parametrize("changes", BROKEN)
def test_a_malformed_row_costs_itself_once_others_were_fine(changes: dict[str, Any]) -> None:
    function = SceneGraphReward()
    with pytest.raises(InvalidInputError):  # of the first rows none is fine: another layout
        function(completions=[answer()], **columns(1, **changes))
    function(completions=[answer()], **columns(1))
    assert function(completions=[answer()], **columns(1, **changes)) == [None]


def test_a_term_alone_is_its_value() -> None:
    text = answer([0, 0, 400, 1000])
    given = columns(1)
    scorer = {t: SceneGraphReward(term=t) for t in ("node_box", "triplet_f1", "format")}
    values = {t: function(completions=[text], **given)[0] for t, function in scorer.items()}
    assert values["format"] == values["triplet_f1"] == 1
    assert 0.5 < (values["node_box"] or 0) < 1
    assert scorer["node_box"].__name__ == "scene_graph_node_box"
    assert scene_graph_reward.__name__ == "scene_graph_balanced"


def test_other_tasks_need_only_their_own_columns() -> None:
    det = SceneGraphReward(task="det")
    objects = columns(1, relationships=None)
    best = make_scorer("balanced", "det").max_total
    assert best < BEST
    assert det(completions=[answer()], **objects) == [pytest.approx(best)]
    cls = SceneGraphReward("r1-hard", task="cls")
    names: dict[str, Any] = {
        "relationships": [[{"subject": "man", "predicate": "riding", "object": "horse"}]]
    }
    assert cls(completions=[answer()], **names) == [pytest.approx(6)]


def test_tokens_are_counted_for_length_penalty() -> None:
    rubric = {"terms": {"node_box": 1, "length_penalty": 1}, "length": {"start": 2, "end": 4}}
    function = SceneGraphReward(rubric, term="length_penalty")
    ids = [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
    sizes = [[100, 100], [100, 100], [100, 101]]  # two groups
    given = columns(3, image_size=sizes)
    rewards = function(completions=[answer()] * 3, completion_ids=ids, **given)
    assert rewards == [1, 0.5, 0]


def test_thinking_is_required_where_the_constructor_says_so() -> None:
    function = SceneGraphReward(term="format", require_thinking=True)
    texts = [answer(), f"<think>hm</think>{answer()}"]
    assert function(completions=texts, **columns(2)) == [0, 1]


def test_terms_and_statuses_are_logged() -> None:
    metrics: dict[str, float] = {}
    extra: dict[str, list[Any]] = {}
    given = columns(3, objects=[[MAN, HORSE], [MAN, HORSE], None])
    scene_graph_reward(
        completions=[answer(), "no", answer()],
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
        **given,
    )
    terms = make_scorer("balanced").weights
    expected = {f"scene_graph_balanced/{term}": 0.5 for term in terms}
    assert metrics == pytest.approx(expected | {"scene_graph_balanced/failed": 0.5})
    assert extra == {"scene_graph_balanced_status": ["ok", "no_answer", None]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rubric": "nonsense"}, "nonsense"),
        ({"term": "edge"}, "edge"),
        ({"box_space": "pixels"}, "box_space"),
    ],
)
def test_a_wrong_setting_is_refused_at_once(settings: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SceneGraphReward(**settings)  # type: ignore[arg-type]
