import json

import numpy as np
import pytest

from scene_data.templates import answer_text, prompt_messages
from scene_data.toy.scenes import SIDE, toy_scene
from scene_graph.boxes import RELATIVE_1, RELATIVE_1000, BoxSpace
from scene_graph.cleaning import TASK_LISTS, Task
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import NotationName
from scene_graph.parsing import find_answer, parse_completion

GRAPH = SceneGraph(
    objects=(
        SceneObject(id="man.1", bbox=(10, 20, 200, 400)),
        SceneObject(id="café.2", bbox=(0, 0, 640, 480)),
    ),
    relationships=(Relationship(subject="man.1", predicate="in front of", object="café.2"),),
)


def test_the_answer_is_compact_json_with_whole_numbers() -> None:
    text = answer_text(GRAPH, RELATIVE_1000, width=640, height=480)
    assert text == (
        '<answer>{"objects":[{"id":"man.1","bbox":[16,42,312,833]},'
        '{"id":"café.2","bbox":[0,0,1000,1000]}],"relationships":'
        '[{"subject":"man.1","predicate":"in front of","object":"café.2"}]}</answer>'
    )


@pytest.mark.parametrize("space", [RELATIVE_1000, RELATIVE_1, BoxSpace.pixels(644, 476)], ids=str)
def test_the_answer_parses_back_to_the_graph(space: BoxSpace) -> None:
    graphs = [(GRAPH, 640, 480)]
    graphs += [(toy_scene(0, i, heldout=False), SIDE, SIDE) for i in range(20)]
    for graph, width, height in graphs:
        parsed = parse_completion(answer_text(graph, space, width=width, height=height), space)
        assert parsed.status == "ok"
        assert parsed.has_answer_tags
        assert not parsed.dropped
        assert [o.id for o in parsed.graph.objects] == [o.id for o in graph.objects]
        assert parsed.graph.relationships == graph.relationships
        boxes = np.array([o.bbox for o in parsed.graph.objects])
        wanted = np.array([o.bbox for o in graph.objects]) / [width, height, width, height]
        assert np.abs(boxes - wanted).max() < 0.0013  # half a unit of the coarsest space


def test_an_answer_without_objects_is_still_an_answer() -> None:
    empty = SceneGraph(objects=(), relationships=())
    text = answer_text(empty, RELATIVE_1000, width=5, height=5)
    assert text == '<answer>{"objects":[],"relationships":[]}</answer>'


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (RELATIVE_1000, "from 0 to 1000"),
        (RELATIVE_1, "from 0 to 1"),
        (BoxSpace.pixels(644, 476), "pixels of a 644x476 image"),
    ],
)
def test_the_open_prompt_names_the_space_and_shows_a_parsable_form(
    space: BoxSpace, words: str
) -> None:
    (message,) = prompt_messages("open", space)
    image, text = message.content
    assert image.type == "image"
    assert text.type == "text"
    assert words in text.text
    example = text.text.split("<answer>")[-1].split("</answer>")[0]
    assert json.loads(example.replace("x1,y1,x2,y2", "1,2,3,4")).keys() == {
        "objects",
        "relationships",
    }


def test_the_toy_prompt_is_short() -> None:
    (message,) = prompt_messages("toy", RELATIVE_1000)
    assert [part.type for part in message.content] == ["image", "text"]
    assert message.content[1].type == "text"
    assert len(message.content[1].text) < 20


def test_thinking_is_asked_for_and_parsed_apart() -> None:
    for template in ("toy", "open"):
        (plain,) = prompt_messages(template, RELATIVE_1000)
        (message,) = prompt_messages(template, RELATIVE_1000, thinking=True)
        assert message != plain
        assert "hink" in message.model_dump()["content"][1]["text"]
    graph = SceneGraph(objects=(), relationships=())
    text = answer_text(graph, RELATIVE_1000, width=10, height=10, thinking="Nothing here.")
    answer = find_answer(text)
    assert answer.has_think_tags
    assert answer.text == '{"objects":[],"relationships":[]}'


TWO_MEN = SceneGraph(
    objects=tuple(
        SceneObject(id=name, bbox=(0, 0, 64, 48))
        for name in ("man.1", "man.2", "Traffic_light.3", "dog.4")
    ),
    relationships=(
        Relationship(subject="man.1", predicate="near", object="Traffic_light.3"),
        Relationship(subject="man.2", predicate="near", object="Traffic_light.3"),
    ),
)


def test_objects_alone_are_answered_with_boxes() -> None:
    text = answer_text(TWO_MEN, RELATIVE_1000, width=640, height=480, task="det")
    parsed = parse_completion(text, RELATIVE_1000, task="det")
    assert (parsed.status, parsed.dropped) == ("ok", {})
    assert parsed.columns.categories == ["man", "man", "traffic light", "dog"]
    assert parsed.columns.coordinates == [0, 0, 100, 100] * 4
    assert "relationships" not in text


def test_triplets_of_names_are_answered_without_boxes() -> None:
    text = answer_text(TWO_MEN, RELATIVE_1000, width=640, height=480, task="cls")
    assert text == (
        '<answer>{"relationships":[{"subject":"man.1","predicate":"near","object":"Traffic_light.3"'
        '},{"subject":"man.2","predicate":"near","object":"Traffic_light.3"}]}</answer>'
    )
    parsed = parse_completion(text, RELATIVE_1000, task="cls")
    assert (parsed.status, parsed.dropped) == ("ok", {})  # two of the same names are two
    graph = parsed.graph
    assert [item.category for item in graph.objects] == ["man", "traffic light", "man"]
    assert {item.bbox for item in graph.objects} == {(0, 0, 1, 1)}
    assert len(graph.relationships) == 2


@pytest.mark.parametrize("notation", ["json", "compact"])
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("template", ["toy", "open", "closed"])
@pytest.mark.parametrize("task", ["sgg", "det", "cls"])
def test_each_task_asks_for_what_its_parser_takes(
    task: Task, template: str, thinking: bool, notation: NotationName
) -> None:
    vocabulary = "psg" if template == "closed" else None
    space = BoxSpace.pixels(640, 480)

    def asked(task: Task) -> str:
        (message,) = prompt_messages(
            template, space, vocabulary, thinking=thinking, task=task, notation=notation
        )
        return str(message.model_dump()["content"][1]["text"])

    text = asked(task)
    assert ("hink" in text) == thinking
    assert len({asked("sgg"), asked("det"), asked("cls")}) == 3
    assert ("Use these predicates" in text) == (template == "closed" and task != "det")
    assert ("ompact" in text) == (template == "toy" and notation == "compact")
    if template == "toy":
        return
    assert ("JSON" in text) == (notation == "json")
    assert ("640x480" in text) == (task != "cls")
    example = text.split("<answer>")[-1].split("</answer>")[0].replace("x1,y1,x2,y2", "1,2,3,4")
    example = example.replace("x1 y1 x2 y2", "1 2 3 4").replace('"name.2"', '"name.1"')
    parsed = parse_completion(example, space, task=task, notation=notation)
    assert (parsed.status, parsed.dropped) == ("ok", {})
    if notation == "json":
        assert tuple(json.loads(example)) == TASK_LISTS[task]
    thought = answer_text(
        TWO_MEN,
        space,
        width=640,
        height=480,
        thinking="A man." if thinking else None,
        task=task,
        notation=notation,
    )
    parsed = parse_completion(thought, space, task=task, notation=notation)
    assert (parsed.status, parsed.has_think_tags, parsed.dropped) == ("ok", thinking, {})
