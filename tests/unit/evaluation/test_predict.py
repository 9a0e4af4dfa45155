"""Pictures through a real server with the fake engine: lines, drawings and the page."""

import asyncio
import base64
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from evaluation.inference.answers import answers_line
from evaluation.inference.drawings import Drawings
from evaluation.inference.fleet import Fleet
from evaluation.inference.folder import inference
from evaluation.inference.predict import (
    kept_lines,
    picture_dataset,
    picture_reader,
    prediction,
)
from evaluation.inference.progress import Progress
from evaluation.inference.prompts import rollout_request
from evaluation.inference.record import kept_settings
from evaluation.reading.lines import GraphLine, LineObject, LineRelationship
from evaluation.report.predictions import write_predictions
from launcher.inference import run_inference, run_prediction
from rollout_service.fake.engine import FakeEngine
from scene_graph.drawing.layout import LONGER_SIDE
from services.errors import ConflictError, EngineError, TooLargeError
from services.images import decode_image
from services.redis.keys import NO_REDIS
from services.schemas.rollouts import MAX_INLINE_BYTES, Completion, InlineImage
from services.settings import Settings
from tests.live_servers import LiveServer, serving
from tests.tagged_pictures import encoded, noise, png_header, tagged


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    settings = Settings.model_validate(
        {
            "run": {"root": str(folder)},
            "model": {"path": "none", "box_space": "relative_1000"},
            "data": {"train": "pictures", "template": "toy"},
            "redis": {"url": NO_REDIS},
            "rollout": {"engine": "fake"},
        }
    )
    with serving(settings, FakeEngine(tokens_per_s=1e6, max_model_len=3072)) as running:
        yield running


def changed(server: LiveServer, **evaluation: Any) -> Settings:
    return server.settings.changed(evaluation=evaluation)


def put(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def plain(file: Path, seed: int = 0) -> Path:
    return put(file, encoded(Image.fromarray(noise(40, 60, seed))))


def answered_pictures(server: LiveServer, folder: Path, wanted: int) -> list[Path]:
    """Pictures of which the engine writes a graph: it fails at an eighth of all."""
    files = [plain(folder / f"{seed}.png", seed) for seed in range(2 * wanted)]
    lines, _ = predicted(server, folder / "looked", files)
    good = [file for file, line in zip(files, lines, strict=True) if line.status == "ok"]
    return good[:wanted]


def predicted(
    server: LiveServer, folder: Path, pictures: list[Path], **evaluation: Any
) -> tuple[list[GraphLine], Progress]:
    progress = Progress(total=len(pictures))
    reader = picture_reader({str(path): path for path in pictures})
    settings = changed(server, **evaluation)
    with (
        Drawings(folder / "drawings", reader) as drawings,
        prediction(folder, picture_dataset(pictures), progress, drawings) as work,
    ):
        asyncio.run(work.ask(settings, [server.url]))
    return kept_lines(folder), progress


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("drawings/*"))


def test_a_phones_picture_lies_upright_and_the_failed_ones_cost_nobody_else(
    server: LiveServer, tmp_path: Path
) -> None:
    good = answered_pictures(server, tmp_path, 1)[0]
    phone = put(tmp_path / "phone.png", tagged(np.asarray(Image.open(good)), 6))
    huge = put(tmp_path / "huge.png", png_header(10_000, 8_000))
    missing = tmp_path / "missing.jpg"
    pictures = [huge, good, missing, phone]
    lines, progress = predicted(server, tmp_path / "out", pictures)
    assert [line.image_id for line in lines] == list(map(str, pictures))
    assert [line.status for line in lines] == ["unreadable", "ok", "unreadable", "ok"]
    assert "10000x8000, over 64,000,000 pixels" in (lines[0].problem or "")
    assert "No such file" in (lines[2].problem or "")
    assert lines[1].size == lines[3].size == (60, 40)
    assert all(
        0 <= side <= 60 for line in lines for item in line.objects for side in item.bbox or ()
    )
    assert names(tmp_path / "out") == sorted([f"{good.stem}.png", "phone.png"])
    with Image.open(tmp_path / "out/drawings/phone.png") as drawn:
        assert drawn.size == (LONGER_SIDE, round(LONGER_SIDE * 40 / 60))
    assert (progress.done, progress.num_failed) == (4, 2)


def test_scores_and_a_consensus_come_from_a_server(server: LiveServer, tmp_path: Path) -> None:
    pictures = answered_pictures(server, tmp_path, 2)
    lines, _ = predicted(server, tmp_path / "scored", pictures, scores=True)
    scores = [item.score for line in lines for item in line.objects]
    scores += [edge.score for line in lines for edge in line.relationships]
    assert len(scores) > 4
    assert all(score is not None and 0 < score < 1 for score in scores)
    lines, _ = predicted(server, tmp_path / "agreed", pictures, consensus=4, temperature=1.0)
    assert all(line.text is None and line.status == "ok" for line in lines)
    shares = {item.score for line in lines for item in line.objects}
    assert shares <= {1 / 2, 2 / 3, 3 / 4, 1}


def test_a_second_call_does_what_is_missing(server: LiveServer, tmp_path: Path) -> None:
    first, second, third, fourth = answered_pictures(server, tmp_path, 4)
    data = second.read_bytes()
    second.write_bytes(data[:30])
    out = tmp_path / "out"
    lines, _ = predicted(server, out, [first, second, third])
    assert [line.status for line in lines] == ["ok", "unreadable", "ok"]
    (out / f"drawings/{third.stem}.png").unlink()
    second.write_bytes(data)
    lines, progress = predicted(server, out, [fourth, second, first])
    assert [line.image_id for line in lines] == list(map(str, (first, second, third, fourth)))
    assert [line.status for line in lines] == ["ok"] * 4
    assert (progress.skipped, progress.done) == (1, 3)
    assert names(out) == sorted(f"{p.stem}.png" for p in (first, second, third, fourth))
    with pytest.raises(ConflictError, match="max_tokens = 1024, and now it is 7"):
        predicted(server, out, [first], max_tokens=7)


def test_drawings_of_pictures_with_one_name_stay_apart(server: LiveServer, tmp_path: Path) -> None:
    good = answered_pictures(server, tmp_path, 1)[0].read_bytes()
    a, b = (put(tmp_path / folder / "cat.png", good) for folder in ("a", "b"))
    out = tmp_path / "out"
    predicted(server, out, [a, b])
    assert names(out) == ["cat-2.png", "cat.png"]
    (out / "drawings/cat-2.png").unlink()
    predicted(server, out, [b])
    assert names(out) == ["cat-2.png", "cat.png"]


def test_a_picture_that_has_changed_is_asked_about_and_drawn_again(
    server: LiveServer, tmp_path: Path
) -> None:
    first, second, third, fourth = answered_pictures(server, tmp_path, 4)
    out, drawing = tmp_path / "out", tmp_path / f"out/drawings/{second.stem}.png"
    before, _ = predicted(server, out, [first, second, third])
    old = drawing.read_bytes()
    state = second.stat()
    second.write_bytes(fourth.read_bytes())
    os.utime(second, ns=(state.st_atime_ns, state.st_mtime_ns))
    copied = first.read_bytes()
    first.unlink()
    first.write_bytes(copied)
    third.unlink()
    after, progress = predicted(server, out, [first, second, third])
    assert [after[0], after[2]] == [before[0], before[2]]
    assert progress.skipped == 2
    (expected,), _ = predicted(server, tmp_path / "other", [fourth])
    assert after[1].objects == expected.objects != before[1].objects
    assert drawing.read_bytes() != old
    other = (tmp_path / f"other/drawings/{fourth.stem}.png").read_bytes()
    assert drawing.read_bytes() == other


def test_the_page_and_drawings_show_no_graph_over_another_picture(
    server: LiveServer, tmp_path: Path
) -> None:
    first, second = answered_pictures(server, tmp_path, 2)
    out = tmp_path / "out"
    predicted(server, out, [first, second])
    (out / f"drawings/{second.stem}.png").unlink()
    plain(second, 99)
    lines, _ = predicted(server, out, [first])
    assert names(out) == [f"{first.stem}.png"]
    html = write_predictions(lines, out, picture_reader({}), {"model": "m"}).read_text()
    block = re.search(r'id="browser-data">(.*?)</script>', html, re.DOTALL)
    assert block
    shown = [image["picture"] is not None for image in json.loads(block[1])["images"]]
    assert sorted(shown) == [False, True]


def test_an_inference_asks_again_about_a_picture_that_has_changed(
    server: LiveServer, tmp_path: Path
) -> None:
    pictures = answered_pictures(server, tmp_path, 3)

    def inferred(pictures: list[Path]) -> tuple[int, list[GraphLine]]:
        progress = Progress(total=len(pictures))
        with inference(tmp_path / "out", picture_dataset(pictures), progress) as work:
            missing = work.num_missing
            asyncio.run(work.ask(server.settings, [server.url]))
        return missing, kept_lines(tmp_path / "out")

    assert inferred(pictures)[0] == 3
    _, before = inferred(pictures)
    plain(pictures[1], 99)
    missing, after = inferred(pictures)
    assert missing == 1
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(ConflictError, match=r"row 1 of pictures is image .*: give another"):
        inferred(pictures[::-1])


def test_it_is_known_without_a_server_what_is_missing_and_what_has_changed(
    server: LiveServer, tmp_path: Path
) -> None:
    (picture,) = answered_pictures(server, tmp_path, 1)
    predicted(server, tmp_path / "out", [picture])
    progress = Progress(total=1)
    with (
        Drawings(tmp_path / "out/drawings", lambda _: None) as drawings,
        prediction(tmp_path / "out", picture_dataset([picture]), progress, drawings) as work,
    ):
        assert (work.num_missing, progress.done) == (0, 1)
        work.check_started(server.settings)
        with pytest.raises(ConflictError, match=r"temperature = 0\.0, and now it is 0\.5"):
            work.check_started(changed(server, temperature=0.5))
        with pytest.raises(ConflictError, match='model = "none", and now it is "other"'):
            work.check_started(server.settings.changed(model={"path": "other"}))


def test_a_finished_folder_and_a_changed_setting_start_no_server(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (picture,) = answered_pictures(server, tmp_path, 1)
    out = tmp_path / "out"
    predicted(server, out, [picture])
    assert run_prediction(server.settings, [picture], out, own_server=True)
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 picture: all are done, in {out}; nothing is asked again" in said
    assert (out / "predictions.html").is_file()
    with pytest.raises(ConflictError, match=r"temperature = 0\.0, and now it is 0\.5"):
        run_prediction(changed(server, temperature=0.5), [picture], out, own_server=True)
    assert run_inference(server.settings, [picture], out / "infer", limit=1, servers=[server.url])
    capsys.readouterr()
    done = run_inference(server.settings, [picture], out / "infer", own_server=True)
    assert (done.done, done.skipped, done.images_per_s) == (1, 1, 0)
    assert "1 image: all are done" in capsys.readouterr().out
    assert not list(out.rglob("rollout*"))


def test_the_best_of_several_has_a_graph_and_then_the_likeliest_tokens(
    server: LiveServer, tmp_path: Path
) -> None:
    def answer(text: str, *logprobs: float) -> Completion:
        return Completion(
            text=text,
            token_ids=[1] * len(logprobs),
            rollout_logprobs=list(logprobs),
            finish_reason="stop",
            policy_versions=[],
        )

    def graph(name: str) -> str:
        return json.dumps(
            {"objects": [{"id": f"{name}.1", "bbox": [0, 0, 500, 500]}], "relationships": []}
        )

    sample = picture_dataset([plain(tmp_path / "a.png")])[0]
    answers = [
        answer("no graph", -0.01),
        answer(graph("cat"), -0.5, -0.5),
        answer(graph("dog"), -0.1, -0.3, -0.2),  # the likeliest a token, not in all
        answer(graph("cow"), -0.55),
    ]
    best = answers_line(server.settings, sample, answers)
    assert [item.id for item in best.objects] == ["dog.1"]
    assert best.mean_logprob == pytest.approx(-0.2)
    assert answers_line(server.settings, sample, answers[:1]).mean_logprob is None
    lines, _ = predicted(server, tmp_path / "out", [tmp_path / "a.png"], temperature=0.7, best_of=8)
    assert lines[0].mean_logprob is not None
    assert kept_settings(tmp_path / "out")["best_of"] == 8


def test_the_largest_file_that_is_sent_as_it_is_is_answered(
    server: LiveServer, tmp_path: Path
) -> None:
    """A JPEG may have anything behind its end."""
    picture = encoded(Image.fromarray(noise(40, 60)), "JPEG")
    file = put(tmp_path / "a.jpg", picture + bytes(MAX_INLINE_BYTES - len(picture)))
    (line,), _ = predicted(server, tmp_path / "out", [file])
    assert line.problem is None
    assert line.num_tokens


async def test_a_request_that_no_server_reads_to_its_end_is_given_up(
    server: LiveServer, tmp_path: Path
) -> None:
    text = base64.b64encode(bytes(9_000_000)).decode()
    sample = picture_dataset([plain(tmp_path / "a.png")])[0]
    request = rollout_request(server.settings, sample)
    request = request.model_copy(update={"images": [InlineImage.model_construct(data=text)]})
    async with Fleet(server.settings, [server.url], per_server=1) as fleet:
        await fleet.meet(model="none")
        with pytest.raises((EngineError, TooLargeError)):
            await fleet.ask(request)


def test_a_file_that_no_request_takes_is_sent_smaller_with_all_its_pixels(
    server: LiveServer, tmp_path: Path
) -> None:
    file = put(tmp_path / "large.png", tagged(noise(1500, 2000), 6))
    assert file.stat().st_size > MAX_INLINE_BYTES
    sample = picture_dataset([file])[0]
    (image,) = rollout_request(server.settings, sample).images
    assert isinstance(image, InlineImage)
    sent = decode_image(base64.b64decode(image.data))
    assert sent.size == (sample.width, sample.height) == (2000, 1500)
    said = np.asarray(decode_image(file.read_bytes()), float).mean((0, 1))
    np.testing.assert_allclose(np.asarray(sent, float).mean((0, 1)), said, atol=1)


def test_the_page_holds_pictures_and_graphs_and_runs_nothing_of_theirs(tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    file = plain(tmp_path / "a.png")
    lines = [
        GraphLine(
            image_id=str(file),
            width=60,
            height=40,
            objects=[LineObject("man.1", (1, 2, 30, 40)), LineObject(f"{hostile}.2", (0, 0, 9, 9))],
            relationships=[LineRelationship("man.1", hostile, f"{hostile}.2")],
            text=hostile,
        ),
        GraphLine(
            image_id="gone.png",
            width=0,
            height=0,
            objects=[],
            relationships=[],
            status="unreadable",
            problem="gone.png: no such file",
        ),
    ]
    page = write_predictions(lines, tmp_path, picture_reader({}), {"model": hostile})
    html = page.read_text()
    assert hostile not in html
    assert "2 pictures, 1 of them without a graph" in html
    block = re.search(r'id="browser-data">(.*?)</script>', html, re.DOTALL)
    assert block
    drawn, gone = json.loads(block[1])["images"]
    (side,) = drawn["sides"]
    assert side["predicted"]["relations"] == [{"subject": 0, "predicate": hostile, "object": 1}]
    assert side["predicted"]["objects"][0] == {"name": "man", "box": [1, 2, 30, 40]}
    with Image.open(io.BytesIO(base64.b64decode(drawn["picture"].partition(",")[2]))) as shown:
        assert shown.size == (60, 40)
    assert (gone["picture"], gone["sides"][0]["text"]) == (None, "gone.png: no such file")


def test_a_line_says_its_problem_only_where_there_is_one() -> None:
    line = GraphLine(image_id="1", width=1, height=1, objects=[], relationships=[])
    assert set(json.loads(msgspec.json.encode(line))) == {
        "image_id",
        "width",
        "height",
        "objects",
        "relationships",
    }
