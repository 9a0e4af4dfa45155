"""`import sgg_rl`: its names, what importing it costs, and how its values look."""

import asyncio
import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import ExifTags, Image

import sgg_rl
from services.errors import InvalidInputError, NotFoundError, SggError
from services.host.environment import child_environment
from services.http.clients.rollout import RolloutClient
from services.schemas.scene_graphs import ImageGraph
from tests.python_examples import failures, make_example_folder, make_run

NEED_SERVERS = {"Client", "AsyncClient", "predict"}
"""Their examples run in tests/integration/test_python_clients.py."""
TOY = "toy/heldout.parquet"
HEAVY = ("torch", "vllm", "datasets", "matplotlib", "transformers", "deepspeed", "pandas")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    make_example_folder(folder)
    return folder


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", sorted(set(sgg_rl.__all__) - NEED_SERVERS))
def test_the_example_of_each_name_runs(name: str) -> None:
    num, wrong = failures(getattr(sgg_rl, name).__doc__, name)
    assert num, f"{name} has no example"
    assert wrong == ""


def test_an_example_that_is_wrong_is_seen() -> None:
    num, wrong = failures(">>> len(sgg_rl.load_dataset('toy/heldout.parquet'))\n7\n", "wrong")
    assert num == 1
    assert "Got:\n    8" in wrong


def test_importing_is_light_and_no_name_needs_what_is_heavy() -> None:
    program = f"""
import sys, sgg_rl
assert not [name for name in sys.modules if name.startswith(("scene_", "services", "numpy"))]
for name in sgg_rl.__all__:
    getattr(sgg_rl, name)
item = sgg_rl.SceneObject(id="man.1", bbox=(0, 0, 9, 9))
graph = sgg_rl.SceneGraph(objects=(item,), relationships=())
sgg_rl.draw(graph, "cat.png").svg
sgg_rl.score("", graph, image_size=(9, 9))
sgg_rl.connect("runs/demo").steps
print([name for name in {HEAVY} if name in sys.modules])
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment(PYTHONPATH=root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_a_name_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"no 'evalute'; it has .*evaluate"):
        _ = sgg_rl.evalute


Shown = Callable[[object], dict[str, str]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """What a notebook gets of a value, by kind: IPython runs where `sgg_rl` is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        shell = InteractiveShell.instance(history_length=0)
        importlib.reload(sgg_rl)
        yield lambda value: dict(shell.display_formatter.format(value)[0])
        InteractiveShell.clear_instance()


def test_a_terminal_gets_text(tmp_path: Path) -> None:
    program = "import sgg_rl\nsgg_rl.SceneGraph(objects=(), relationships=())"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", program],
        env=child_environment(PYTHONPATH=str(Path(__file__).parents[3]), IPYTHONDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "Out[0]: SceneGraph(objects=(), relationships=())"


def test_samples_graphs_and_drawings_are_pictures_in_a_notebook(shown: Shown) -> None:
    sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
    names = [item.category for item in sample.graph.objects]
    for value, has_picture in ((sample, True), (sample.graph, False), (sgg_rl.draw(sample), True)):
        svg = ElementTree.fromstring(shown(value)["image/svg+xml"])
        texts = [
            "".join(element.itertext()) for element in svg.iter() if element.tag[-5:] == "}text"
        ]
        assert set(names) <= {text.rstrip(" 0123456789") for text in texts}
        assert bool(svg.findall(".//{*}image")) == has_picture


def test_nothing_of_a_sample_steers_a_terminal_or_shows_bytes(shown: Shown) -> None:
    sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
    hostile = sgg_rl.SceneObject(id="\x1b[2J<script>.1", bbox=(0, 0, 9, 9))
    graph = sgg_rl.SceneGraph(objects=(hostile,), relationships=())
    for value in (sample, graph, sgg_rl.draw(graph, sample)):
        text = shown(value)["text/plain"]
        assert text.replace("\n", "").isprintable()
        assert "PNG" not in text
    assert "<script" not in shown(graph)["image/svg+xml"]


def test_any_graph_is_drawn(shown: Shown) -> None:
    """Boxes in fractions, none at all, and numbers that no picture has."""
    fractions = sgg_rl.SceneObject(id="man.1", bbox=(0.1, 0.2, 0.5, 0.9))
    endless = sgg_rl.SceneObject(id="horse.2", bbox=(0, 0, float("inf"), float("nan")))
    for objects, drawn in (((fractions,), {"man"}), ((), set()), ((endless, fractions), {"man"})):
        graph = sgg_rl.SceneGraph(objects=objects, relationships=())
        svg = ElementTree.fromstring(shown(graph)["image/svg+xml"])
        assert {text.text for text in svg.findall(".//{*}text")} == drawn


def test_the_same_answer_earns_the_same_by_graph_and_by_sample() -> None:
    sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
    size = sample.width, sample.height
    objects = ", ".join(f'{{"id": "{o.id}", "bbox": {list(o.bbox)}}}' for o in sample.graph.objects)
    text = f'<answer>{{"objects": [{objects}], "relationships": []}}</answer>'
    space = "pixels:{}x{}".format(*size)
    (one,) = sgg_rl.score(text, sample, box_space=space)
    (other,) = sgg_rl.score([text], sample.graph, image_size=size, box_space=space)
    assert one == other
    assert one.matched.objects == len(sample.graph.objects)
    assert one.breakdown["object_precision"] == 1
    assert one.breakdown["triplet_f1"] == 0
    assert sgg_rl.read_answer(text, size, box_space=space).objects == sample.graph.objects


def test_a_task_and_an_address_that_are_none_are_refused() -> None:
    for ask in (sgg_rl.load_dataset, partial(sgg_rl.evaluate, "mine.jsonl")):
        with pytest.raises(InvalidInputError, match="task: Input should be 'sgg', 'det' or 'cls'"):
            ask("toy/heldout.parquet", task="DET")  # type: ignore[arg-type]
    wrong = ("127.0.0.1:8200", "http://", "http://host:8200\n", "http://host:x", "http://host:0")
    for url in (
        *wrong,
        "http://host:65536",
        "http://host:1?x=1",
        "http://host:1/#x",
        "http://h:1?",
    ):
        for make in (RolloutClient, lambda url: sgg_rl.Client(reward_url=url)):
            with pytest.raises(InvalidInputError, match=r"is no address .* http://host"):
                make(url)


def graph_of(bbox: object) -> sgg_rl.SceneGraph:
    item = sgg_rl.SceneObject(id="man.1", bbox=bbox)  # type: ignore[arg-type]
    return sgg_rl.SceneGraph(objects=(item,), relationships=())


def test_what_no_signature_allows_is_refused_by_its_name() -> None:
    ask: Any = sgg_rl
    sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
    pixels = np.zeros((3, 4))
    other = sgg_rl.AsyncClient(rollout_url="http://127.0.0.1:1")
    nobody = sgg_rl.Client(reward_url="http://127.0.0.1:1")
    for call, words in (
        *((partial(ask.draw, it, sample), "graph is a sample") for it in (None, "text", pixels)),
        *((partial(ask.score, "x", it), "graph is a sample") for it in (None, 3)),
        *((partial(ask.score, it, sample), "answers: .* valid string") for it in (None, 3)),
        *(
            (partial(ask.score, "x", sample, **it), next(iter(it)) + ": ")
            for it in (
                {"rubric": 3},
                {"client": 3},
                {"task": "DET"},
                {"image_size": 3},
                {"rubrik": "x"},
            )
        ),
        (partial(ask.score, [3], sample), r"answers\.0: Input should be a valid string, and not 3"),
        (partial(ask.draw, graph_of(None), sample), r"graph\.objects\.0\.bbox: .* not None"),
        (partial(ask.score, "x", graph_of((1, 2, 3))), r"reference\.objects\.0\.bbox\.3: Field"),
        (partial(ask.draw, sample.graph, 7), "picture: a picture is a sample, .* and not 7"),
        *(
            (
                partial(ask.draw, sample.graph, it),
                r"an array has uint8 \[height, width, 3\] of RGB, and not ",
            )
            for it in (pixels, *(np.zeros((3, 5, n), np.uint8) for n in (0, 1, 5)))
        ),
        *(
            (partial(ask.read_answer, "x", it), "image_size")
            for it in (None, (7,), (float("nan"), 3), (10**400, 10**400), (1, 10**5000))
        ),
        *((partial(ask.predict, sample, client=it), "of Client") for it in (None, other)),
        *((partial(ask.load_dataset, it), "path is a text") for it in ("", None, "a\0", ["toy"])),
        (partial(ask.load_dataset, "toy/" + "a" * 300), "File name too long"),
        (partial(ask.load_dataset), "path: Missing required argument .*help.sgg_rl.load_dataset"),
        (partial(ask.connect, "runs", "demo"), "connect: 1: Unexpected positional argument"),
        (partial(ask.connect, None), "run: a path is a text or a Path, and not None"),
        *((partial(ask.connect("runs/demo").rollouts, it), "a step is") for it in ("0", None)),
        (partial(ask.draw(sample).save, None), "save: file: a path is a text"),
        (partial(ask.compare, "toy", 2), "second: .* of EvaluationResult or a path .* not 2"),
        *((partial(ask.load_dataset(TOY).__getitem__, it), "number") for it in ("a", None, 1.5)),
        (partial(ask.Client, rollout_url=7), "7 is no address"),
        (
            partial(ask.Client, "http://h:1"),
            "^Client: too many .* it takes rollout_url, reward_url",
        ),
        (
            partial(ask.AsyncClient, rollouturl="http://h:1"),
            "^AsyncClient: .* 'rollouturl'; it tak",
        ),
        (partial(ask.score, "\ud800", sample, client=nobody), "lone surrogate"),
        (partial(ask.Client(rollout_url="http://h").rollout.rollouts, None), "a message of serv"),
    ):
        with pytest.raises(InvalidInputError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_what_is_impossible_is_said_in_one_line() -> None:
    sample = sgg_rl.load_dataset("toy/heldout.parquet")[0]
    for ask, words in (
        (lambda: sgg_rl.score("x", sample.graph), "image_size"),
        (lambda: sgg_rl.score("x", sample.graph, image_size=(0, 5)), "image_size"),
        (lambda: sgg_rl.score("x", sample, box_space="inches"), "box_space"),
        (lambda: sgg_rl.score("x", sample, rubric="none"), "^rubric: no rubric .* balanced"),
        (
            lambda: sgg_rl.score(
                "x", sample, rubric={"similarity": "table:t.json", "terms": {"node_category": 1}}
            ),
            "table:t.json needs a folder .* sgg_rl.score has client",
        ),
        (lambda: sgg_rl.score([], sample), "answers: there is none"),
        (lambda: sgg_rl.read_answer("x", (1, 1), box_space="inches"), "relative_1000"),
        (lambda: sgg_rl.draw(sample.graph), "picture"),
        (lambda: sgg_rl.draw(sample.graph, "none.png"), "No such file"),
        (lambda: sgg_rl.draw(sample).save("x.gif"), r"\.svg or a \.png"),
        (lambda: sgg_rl.draw(sample).save("none/x.png"), "cannot use none/x.png: No such file"),
        (lambda: sgg_rl.Client().reward, "reward_url"),
        (lambda: sgg_rl.score("x", sample, rubric={"terms": 3}), "rubric"),
        (lambda: sgg_rl.read_answer("x", (0, 5)), "image_size.0: .* greater than 0, and not 0"),
        (
            lambda: sgg_rl.evaluate("mine.jsonl", TOY, output="mine.jsonl"),
            "cannot use mine.jsonl: File ex",
        ),
        (lambda: sgg_rl.evaluate("mine.jsonl", TOY, aliases="syn.txt", vocabulary="psg"), "n syn"),
        (lambda: sgg_rl.compare("toy", "toy"), "toy is no finished evaluation"),
    ):
        with pytest.raises(InvalidInputError, match=words) as error:
            ask()
        assert "\n" not in str(error.value)
    nobody = sgg_rl.Client(rollout_url="http://127.0.0.1:1")
    with pytest.raises(InvalidInputError, match=r"temperature: .* less than or equal to 2"):
        sgg_rl.predict(sample, client=nobody, temperature=9)
    with pytest.raises(InvalidInputError, match="not an image"):
        sgg_rl.predict(bytes(9_000_000), client=nobody)
    with pytest.raises(NotFoundError, match=r"no run in toy: it has no config\.toml"):
        sgg_rl.connect("toy")


def test_a_run_is_read_anew_at_each_look(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    run = sgg_rl.connect(str(tmp_path / "mine"))
    assert (len(run.steps), run.evaluations, run.is_finished) == (2, [], False)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "num_steps": 80}\n{"step": 3, "num')
    (run.folder / "evaluations.jsonl").write_text('{"step": 0, "failure_rate": 0.5}\n')
    assert [row["step"] for row in run.steps] == [0, 1, 2]
    assert [row["failure_rate"] for row in run.evaluations] == [0.5]
    with pytest.raises(NotFoundError, match="no groups of step 7"):
        run.rollouts(7)


def test_an_answer_of_a_server_is_a_picture(shown: Shown) -> None:
    fields = {"width": 9, "height": 9, "status": "ok", "dropped": {}, "truncated": False}
    unknown = dict.fromkeys(("fault", "unconstrained_status", "confidence", "policy_versions"))
    answer = ImageGraph.model_validate(
        {
            **fields,
            **unknown,
            "objects": [{"id": "man.1", "bbox": [1, 2, 3, 4]}, {"id": "horse.2", "bbox": None}],
            "relationships": [{"subject": "man.1", "predicate": "on", "object": "horse.2"}],
            "num_tokens": 5,
            "finish_reason": "stop",
            "svg": "<svg/>",
        }
    )
    assert shown(answer)["image/svg+xml"] == "<svg/>"
    assert "svg" not in repr(answer)
    assert [item.bbox for item in answer.graph.objects] == [(1, 2, 3, 4), (0, 0, 9, 9)]
    assert answer.graph.relationships[0].predicate == "on"


def test_a_drawing_is_saved_as_what_its_name_says(tmp_path: Path) -> None:
    drawing = sgg_rl.draw(sgg_rl.load_dataset("toy/heldout.parquet")[0])
    drawing.save(tmp_path / "a.svg")
    drawing.save(str(tmp_path / "a.PNG"))
    assert (tmp_path / "a.svg").read_text() == drawing.svg
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_a_picture_is_a_file_its_bytes_or_its_pixels() -> None:
    sample = sgg_rl.load_dataset(TOY)[0]
    image = Image.open("cat.png").convert("RGB")
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[ExifTags.Base.Orientation] = 6  # stored lying on its left side
    first = sgg_rl.load_dataset(TOY)[-1]
    wanted = sgg_rl.draw(sample.graph, first.image_bytes).svg
    for picture in ("cat.png", Path("cat.png"), first, image, np.asarray(image), turned):
        assert sgg_rl.draw(sample.graph, picture).svg == wanted
    for mode in ("CMYK", "L", "F", "1", "RGBA"):
        assert sgg_rl.draw(sample.graph, image.convert(mode)).image.size == image.size


def test_every_path_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir("/")
    dataset = sgg_rl.load_dataset("~/toy/heldout.parquet")
    drawing = sgg_rl.draw(dataset[0], "~/cat.png")
    drawing.save("~/home.svg")
    assert (folder / "home.svg").read_text() == drawing.svg
    assert len(sgg_rl.connect("~/runs/demo").steps) == 2
    (folder / "synonyms.txt").write_text("square,box\n")
    names = json.dumps({"objects": ["square"], "predicates": ["above"]})
    (folder / "names.json").write_text(names)
    found = sgg_rl.evaluate(
        "~/mine.jsonl",
        "~/toy/heldout.parquet",
        aliases="~/synonyms.txt",
        output="~/at-home",
        train="~/toy/train.parquet",
        vocabulary="~/names.json",
    )
    assert found.inputs["train"] == str(folder / "toy/train.parquet")
    assert sgg_rl.compare("~/at-home", "~/at-home").num_images == 8


def test_a_slice_of_a_dataset_is_a_list_of_its_samples() -> None:
    dataset = sgg_rl.load_dataset(TOY)
    assert dataset[1:6:2] == [dataset[1], dataset[3], dataset[np.int64(5)]]
    assert dataset[-2:] == [dataset[6], dataset[7]]
    assert dataset[9:] == []
    for wrong in (8, -9, 10**400):
        with pytest.raises(IndexError, match=rf"^{TOY}: samples are 0 to 7: none is {wrong}$"):
            dataset[wrong]
    assert len(list(dataset)) == 8


def test_more_answers_than_one_message_holds_are_scored_in_order() -> None:
    sample = sgg_rl.load_dataset(TOY)[0]
    graph = '<answer>{"objects": [], "relationships": []}</answer>'
    texts = ["none"] * 300
    texts[299] = texts[10] = graph
    found = [reward.status for reward in sgg_rl.score(texts, sample)]
    assert found == ["ok" if text == graph else "no_answer" for text in texts]


def test_a_client_that_was_used_is_pickled_without_its_connections() -> None:
    nobody: dict[str, Any] = {
        "reward_url": "http://127.0.0.1:1",
        "token": "secret",
        "timeout_s": 0.01,
    }
    client, other = sgg_rl.Client(**nobody), sgg_rl.AsyncClient(**nobody)
    for ask in (client.reward.rubrics, lambda: asyncio.run(other.reward.rubrics())):
        with pytest.raises(SggError):
            ask()
    for used in (client, other):
        copy = pickle.loads(pickle.dumps(used))
        assert copy == used
        assert copy.token == "secret"
        assert copy.reward is not used.reward


@pytest.mark.parametrize("token", ["secret\n", "sécret", "a\rb", 7])
def test_a_token_that_no_header_holds_is_refused_at_once(token: Any) -> None:
    for client in (sgg_rl.Client, sgg_rl.AsyncClient):
        with pytest.raises(InvalidInputError, match="token"):
            client(rollout_url="http://127.0.0.1:1", token=token)


def test_an_evaluation_is_one_line_and_writes_only_where_it_is_told(folder: Path) -> None:
    before = set(folder.iterdir())
    result = sgg_rl.evaluate("mine.jsonl", "toy/heldout.parquet", split="toy")
    assert set(folder.iterdir()) == before
    assert "\n" not in repr(result)
    sgg_rl.evaluate("mine.jsonl", "toy/heldout.parquet", output=folder / "found")
    assert (folder / "found/report.html").exists()
    assert {d.difference for d in sgg_rl.compare(result, result).differences} <= {0.0, None}
