import json
import math
from pathlib import Path
from typing import Any

import pytest

from console.groups.coloured_text import MAX_TEXT, coloured_text
from console.groups.difference import difference, judged_completion, judged_reference
from console.groups.filters import read_filters
from console.groups.tokens import advantages_of_tokens, token_rows, tokenizer_of
from reward_service.explain.explainer import Explainer, Explanation
from reward_service.scoring import reference_columns
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from scene_graph.boxes import RELATIVE_1000
from services.bundled import toy_start
from services.run_folder.index_line import RolloutFilter
from services.schemas.rewards import Credit, RewardGroup, Task
from services.schemas.rollouts import Completion, VersionSpan
from services.settings.training import AlgorithmSettings
from tests.rollout_runs import group as toy_group

SIZE = (200, 100)
REFERENCE: dict[str, Any] = {
    "objects": [
        {"id": "man.1", "bbox": [0, 0, 100, 100]},
        {"id": "horse.1", "bbox": [100, 0, 200, 100]},
        {"id": "dog.1", "bbox": [0, 0, 20, 20]},
    ],
    "relationships": [
        {"subject": "man.1", "predicate": "riding", "object": "horse.1"},
        {"subject": "dog.1", "predicate": "near", "object": "man.1"},
    ],
}
SAID: dict[str, Any] = {
    "objects": [
        {"id": "man.1", "bbox": [0, 0, 500, 1000]},
        {"id": "horse.1", "bbox": [700, 0, 1000, 600]},
        {"id": "bad.1", "bbox": [5, 5, 5, 5]},
        {"id": "ghost.1", "bbox": [0, 400, 90, 600]},
    ],
    "relationships": [
        {"subject": "man.1", "predicate": "riding", "object": "horse.1"},
        {"subject": "man.1", "predicate": "has", "object": "ghost.1"},
        {"subject": "man.1", "predicate": "has", "object": "nobody.1"},
    ],
}


def group(*texts: str) -> RewardGroup:
    return RewardGroup.model_validate(
        {
            "group_id": "g",
            "image_size": SIZE,
            "box_space": "relative_1000",
            "reference": REFERENCE,
            "completions": texts,
        }
    )


def explained(text: str, task: Task = "sgg") -> Explanation:
    rubric = "balanced" if task != "cls" else {"name": "t", "terms": {"triplet_f1": 1.0}}
    return Explainer(rubric, task).explain(group(text))[0]


def answer(value: object) -> str:
    return f"I see: <answer>\n{json.dumps(value)}</answer>"


def test_difference_has_hits_near_misses_hallucinations_and_misses() -> None:
    found = difference(explained(answer(SAID)), RELATIVE_1000, SIZE)
    assert [(part.label, part.verdict) for part in found.objects] == [
        ("man.1", "hit"),
        ("horse.1 IoU 0.36", "near"),
        ("ghost.1", "hallucination"),
        ("", "near wanted"),
        ("dog.1", "miss"),
    ]
    assert found.objects[0].box == (0, 0, 100, 100), "in pixels"
    assert found.objects[3].box == (100, 0, 200, 100), "where the horse is"
    links = [
        (found.objects[e.subject].name, e.predicate, e.object, e.verdict) for e in found.relations
    ]
    assert links == [
        ("man.1", "riding", 1, "near"),
        ("man.1", "has", 2, "hallucination"),
        ("man.1", "riding", 3, "miss"),
        ("dog.1", "near", 0, "miss"),
    ]
    assert found.relations[0].why.startswith("box off: IoU of an end is under 0.5")


def test_reference_is_marked_by_what_was_found() -> None:
    found = explained(answer(SAID))
    columns = reference_columns(group("x"))[0]
    marked = judged_reference(columns, found, SIZE)
    assert [part.verdict for part in marked.objects] == ["hit", "near", "miss"]
    assert [link.verdict for link in marked.relations] == ["miss", "miss"]
    right = answer(
        {
            "objects": [
                {
                    **o,
                    "bbox": [
                        5 * o["bbox"][0],
                        10 * o["bbox"][1],
                        5 * o["bbox"][2],
                        10 * o["bbox"][3],
                    ],
                }
                for o in REFERENCE["objects"]
            ],
            "relationships": REFERENCE["relationships"],
        }
    )
    all_hit = difference(explained(right), RELATIVE_1000, SIZE)
    assert {part.verdict for part in all_hit.objects} == {"hit"}
    assert {link.verdict for link in all_hit.relations} == {"hit"}


def test_an_answer_without_a_graph_misses_everything() -> None:
    found = difference(explained("no idea"), RELATIVE_1000, SIZE)
    assert [part.verdict for part in found.objects] == ["miss"] * 3
    assert [link.verdict for link in found.relations] == ["miss"] * 2
    assert (
        coloured_text("no \x1b[2J idea", explained("no \x1b[2J idea"))[0].text == "no \\x1b[2J idea"
    )


def test_names_alone_have_no_boxes() -> None:
    text = answer({"relationships": SAID["relationships"][:1]})
    graph = difference(explained(text, "cls"), RELATIVE_1000, SIZE)
    assert {part.box for part in graph.objects} == {None}
    assert sorted(link.verdict for link in graph.relations) == ["hit", "miss"]
    assert (
        judged_completion(explained(text, "cls"), RELATIVE_1000, SIZE).data(SIZE)["objects"][0][
            "box"
        ]
        is None
    )


def test_answer_keeps_its_text_and_gets_colours() -> None:
    text = answer(SAID)
    parts = coloured_text(text, explained(text))
    assert "".join(part.text for part in parts) == text
    marked = [(json.loads(part.text), part.verdict) for part in parts if part.verdict]
    verdicts = ["hit", "near", "dropped", "hallucination", "near", "hallucination", "dropped"]
    assert marked == list(zip([*SAID["objects"], *SAID["relationships"]], verdicts, strict=True))
    assert "no object has the id nobody.1" in [part.why for part in parts if part.verdict][-1]


@pytest.mark.parametrize(
    "text",
    [
        '{"objects":[],"relationships" : [ ] , "more": {"objects": [1]}}',
        '{"note": "\\"objects\\": [", "objects": [{"id": "man.1", "bbox": [0,0,500,1000]}], '
        '"relationships": []}',
    ],
)
def test_answers_as_models_write_them_are_found_in_their_text(text: str) -> None:
    found = explained(text)
    assert found.status == "ok"
    parts = coloured_text(text, found)
    assert "".join(part.text for part in parts) == text
    assert sum(bool(part.verdict) for part in parts) == len(found.objects)


def test_a_long_answer_is_cut_and_says_so() -> None:
    text = "x" * (MAX_TEXT + 1234)
    parts = coloured_text(text, explained(text))
    assert parts[-1].text == " … (1,234 more characters)"
    assert sum(len(part.text) for part in parts) < MAX_TEXT + 100


RATIOS = (0.5, 1.0, 1.5)


def tokens(*advantages: float, **algorithm: object) -> list[str]:
    made = Completion(
        text="abc",
        token_ids=[7, 8, 9],
        rollout_logprobs=[-1.0, -1.0, -1.0],
        finish_reason="stop",
        policy_versions=[
            VersionSpan(policy_version=3, start=0, end=2),
            VersionSpan(policy_version=4, start=2, end=3),
        ],
    )
    settings = AlgorithmSettings.model_validate(algorithm)
    all_ = advantages * 3 if len(advantages) == 1 else advantages
    rows = token_rows(made, [math.log(r) - 1 for r in RATIOS], all_, settings, ["a", "b", "c"])
    assert [row.version for row in rows] == [3, 3, 4]
    assert [row.ratio for row in rows] == pytest.approx(RATIOS)
    assert [row.shade for row in rows] == ["down3", "", "up3"]
    return [row.clipped for row in rows]


def test_tokens_are_clipped_as_the_loss_clips_them() -> None:
    assert tokens(1.0) == ["", "", "high"]
    assert tokens(-1.0) == ["low", "", ""]
    assert tokens(1.0, clip_high=0.6) == ["", "", ""]
    assert tokens(-1.0, loss="cispo") == ["", "", "high"], "capped, whatever the advantage"
    assert tokens(-1.0, loss="gspo", clip_low=0.01) == ["low", "low", "low"], "one for all"
    assert tokens(1.0, old_logprobs="trainer") == ["", "", ""], "its ratios are 1"
    assert tokens(-1.0, delta=1.3) == ["low", "", "high"]
    assert tokens(-1.0, loss="sapo") == ["", "", ""], "its gradient fades"
    assert tokens() == ["", "", ""], "advantages are not known"
    assert tokens(-1.0, 0.0, 1.0) == ["low", "", "high"], "each element has its own"


def test_each_token_has_the_advantage_of_its_element(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=1, num_heldout=1)
    (sample,) = open_dataset(tmp_path / "train.parquet")
    text = "<answer>\nobjects\nA man 1 2 3 4\nrelationships\nend\n</answer>"
    made = toy_group(sample, 0, [text, text], 0, notation="compact")
    span = (text.index("A man"), text.index("rel"))
    credit = Credit(num_objects=1, spans=[span], increments=[1.0])
    rewards = [reward.model_copy(update={"credit": credit}) for reward in made.rewards]
    places = {"rewards": rewards, "element_advantages": [[2.0, -1.0]] * 2}
    by_element = made.model_copy(update=places)
    tokenizer = tokenizer_of(str(toy_start()))
    num_tokens = len(tokenizer.encode(text).ids)
    before = len(tokenizer.encode(text[: span[1]]).ids)
    expected = [2.0] * before + [-1.0] * (num_tokens - before)
    assert advantages_of_tokens(by_element, 1, tokenizer) == expected
    assert advantages_of_tokens(by_element, 1, None) == [], "a tokenizer says whose tokens they are"
    damaged = by_element.model_copy(update={"element_advantages": [[2.0]] * 2})
    assert advantages_of_tokens(damaged, 0, tokenizer) == []
    assert advantages_of_tokens(made, 0, None) == [0.0] * num_tokens, "the answer's own"


def test_filters_that_are_none_are_said_and_the_others_hold() -> None:
    query = {
        "step_from": "x1",
        "reward_min": "0.5",
        "truncated": "yes",
        "state": "odd",
        "cursor": "",
    }
    asked = read_filters(query)
    assert asked.wanted == RolloutFilter(reward_min=0.5, truncated=True)
    assert asked.problems == (
        "step from is a whole number, not 'x1'.",
        "state is one of trained, zero_variance, stale, dead, not 'odd'.",
    )
    assert (
        read_filters({"sort": "lowest", "text": " a b "}).address("7")
        == "text=a+b&sort=lowest&cursor=7"
    )
