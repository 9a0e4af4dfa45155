"""Scores from the probabilities of an answer's tokens."""

import json
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import msgspec
import numpy as np
import pytest

from evaluation.inference.answers import answers_line
from evaluation.reading.lines import GraphLine
from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_references
from evaluation.result import Confidence
from evaluation.scoring.evaluate import Options, evaluate
from scene_data.dataset import Sample
from scene_graph.graph import SceneGraph
from services.errors import InvalidInputError
from services.schemas.rollouts import Completion, VersionSpan
from services.settings import Settings

SIZE = 1000


def settings(notation: str = "json", task: str = "sgg") -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "none", "template": "toy", "notation": notation, "task": task},
            "evaluation": {"scores": True},
        }
    )


def answer(*tokens: str | tuple[str, float]) -> Completion:
    """An answer of these tokens; those alone are sure."""
    pairs = [(token, 1.0) if isinstance(token, str) else token for token in tokens]
    texts = [text for text, _ in pairs]
    return Completion(
        text="".join(texts),
        token_ids=list(range(len(texts))),
        rollout_logprobs=[math.log(p) for _, p in pairs],
        finish_reason="stop",
        policy_versions=[VersionSpan(policy_version=0, start=0, end=len(texts))],
        token_ends=list(accumulate(map(len, texts))),
    )


def line_of(completion: Completion, run: Settings, times: int = 1) -> GraphLine:
    sample = Sample(
        image_id="7",
        image_bytes=b"",
        width=SIZE,
        height=SIZE,
        graph=SceneGraph(objects=(), relationships=()),
    )
    return answers_line(run, sample, [completion] * times)


def confidence_of(predictions: bytes, truth: bytes, folder: Path) -> Mapping[str, Confidence]:
    """What evaluation says of the scores of lines."""
    (folder / "predictions.jsonl").write_bytes(predictions)
    (folder / "truth.jsonl").write_bytes(truth)
    problems = Problems()
    references = read_references(str(folder / "truth.jsonl"), problems)
    found = read_predictions(folder / "predictions.jsonl", references, problems)
    return evaluate(found, references, problems, Options(split="made up")).confidence


def scores_of(line: GraphLine) -> Mapping[str, float | None]:
    named = {item.id: item.score for item in line.objects}
    return named | {edge.predicate: edge.score for edge in line.relationships}


def test_objects_have_the_probability_of_their_names_and_relationships_of_all_tokens() -> None:
    json_text = answer(
        '{"objects":[{"id":"',
        ("man", 0.5),
        ('.1","bbox":[', 0.8),
        ("1,2,30,40", 0.1),
        ']},{"id":"',
        ("horse", 0.25),
        '.1","bbox":[5,6,70,80]}],"relationships":[',
        ('{"subject":"man', 0.9),
        ('.1","predicate":"', 0.5),
        ("on", 0.2),
        ('","object":"horse.1"}', 1.0),
        "]}",
    )
    expected = {"man.1": 0.4, "horse.1": 0.25, "on": 0.09}
    assert scores_of(line_of(json_text, settings())) == pytest.approx(expected)
    compact = answer(
        *("objects\n", "A ", ("man", 0.5), (" 1 2 30 40", 0.1), "\n", "B ", ("horse", 0.25)),
        *(" 5 6 70 80\n", "relationships\n", ("A ", 0.9), ("on", 0.2), (" B", 0.5), "\n", "end"),
    )
    expected = {"man.1": 0.5, "horse.2": 0.25, "on": 0.09}
    assert scores_of(line_of(compact, settings("compact"))) == pytest.approx(expected)


def test_what_was_dropped_or_stands_in_another_form_moves_no_score_to_another() -> None:
    box = '","bbox":[1,2,30,40]}'
    repeated = answer(
        *('{"objects":[{"id":"', ("man.1", 0.5), box, ',{"id":"', ("man.1", 0.1), box),
        *(',{"id":"', ("horse.2", 0.25), box, '],"relationships":[]}'),
    )
    assert scores_of(line_of(repeated, settings())) == pytest.approx(
        {"man.1": 0.5, "horse.2": 0.25}
    )
    other_keys = answer('{"relationships":[],"objects":[{"id":"', ("man.1", 0.25), box, "]}")
    usual = 0.25 ** (1 / 4)
    assert scores_of(line_of(other_keys, settings())) == pytest.approx({"man.1": usual})


def test_triplets_of_names_have_scores_and_their_ends_have_none() -> None:
    edge = answer(
        *('{"relationships":[{"subject":"man","predicate":"', ("on", 0.5), '","object":"horse"}]}')
    )
    expected = {"man": None, "horse": None, "on": 0.5}
    assert scores_of(line_of(edge, settings(task="cls"))) == expected
    with_objects = answer(
        *('{"objects":[{"id":"', ("man", 0.1), '","bbox":[1,2,30,40]}],', '"relationships":['),
        *('{"subject":"man","predicate":"', ("on", 0.5), '","object":"horse"},'),
        *('{"subject":"man","predicate":"', ("near", 0.25), '","object":"horse"}]}'),
    )
    found = scores_of(line_of(with_objects, settings(task="cls")))
    assert found == pytest.approx({"man": None, "horse": None, "on": 0.5, "near": 0.25})


def test_answers_that_all_agree_are_scored_and_evaluated_so(tmp_path: Path) -> None:
    graph = (
        '{"objects":[{"id":"man.1","bbox":[1,2,30,40]},{"id":"horse.2","bbox":[5,6,70,80]}],'
        '"relationships":[{"subject":"man.1","predicate":"on","object":"horse.2"}]}'
    )
    run = settings().changed(evaluation={"scores": False, "consensus": 2, "temperature": 1.0})
    agreed = msgspec.json.encode(line_of(answer(graph), run, times=2))
    assert agreed.count(b'"score":1.0') == 3
    assert b"score" not in msgspec.json.encode(
        line_of(answer(graph), settings().changed(evaluation={"scores": False}))
    )
    confidence = confidence_of(agreed, agreed, tmp_path)
    assert {kind: found.calibration_error for kind, found in confidence.items()} == {
        "triplets": 0,
        "objects": 0,
    }


def test_a_server_of_an_earlier_release_is_named() -> None:
    silent = answer("{}").model_copy(update={"token_ends": None})
    with pytest.raises(InvalidInputError, match="start it again with this release"):
        line_of(silent, settings())


def test_a_model_that_knows_how_the_world_is_made_is_calibrated(tmp_path: Path) -> None:
    """Truth and answers are drawn alike, so a predicate is right as often as it is written."""
    rng = np.random.default_rng(0)
    run, predicates = settings(), [f"p{chr(97 + i)}" for i in range(6)]
    objects = '{"objects":[{"id":"man.1","bbox":[0,0,100,100]}'
    objects += "".join(
        f',{{"id":"dog.{i}","bbox":[{20 * i},0,{20 * i + 10},50]}}' for i in range(1, 21)
    )
    predictions, references = [], []
    for image in range(600):
        tokens: list[str | tuple[str, float]] = [f'{objects}],"relationships":[']
        edges = []
        for i in range(1, 21):
            shares = rng.dirichlet(np.ones(len(predicates)))
            written, true = rng.choice(len(predicates), 2, p=shares)
            start = f'{"," if i > 1 else ""}{{"subject":"man.1","predicate":"'
            tokens += [start, (predicates[written], shares[written]), f'","object":"dog.{i}"}}']
            edges.append((predicates[true], f"dog.{i}"))
        line = line_of(answer(*tokens, "]}"), run)
        line.image_id = str(image)
        predictions.append(msgspec.json.encode(line))
        true_edges = [{"subject": "man.1", "predicate": p, "object": o} for p, o in edges]
        boxes = json.loads(objects + "]}")["objects"]
        sizes = {"image_id": str(image), "width": SIZE, "height": SIZE}
        references.append(json.dumps(sizes | {"objects": boxes, "relationships": true_edges}))
    truth = "\n".join(references).encode()
    triplets = confidence_of(b"\n".join(predictions), truth, tmp_path)["triplets"]
    assert triplets.num_predicted == 12_000
    assert triplets.calibration_error is not None
    assert triplets.calibration_error < 0.02
    assert triplets.risk_coverage_area < 0.8 * (1 - triplets.share_right)
