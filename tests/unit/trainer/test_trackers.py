"""What is written is read back with the trackers' own readers. Nothing leaves this machine."""

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from launcher.local_run import run_here
from planning.preflight.trainer import check_trainer
from services.errors import SettingsError
from services.images import ImageStore, decode_image
from services.schemas.common import ChatMessage, ImagePart, Sampling
from services.schemas.groups import GroupReference, TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Matched, ReferenceGraph, Reward
from services.settings import Settings
from tests.tagged_pictures import encoded
from tests.train_groups import completion, train_group
from trainer.records.answer_tables import SIDE
from trainer.records.trackers import Trackers, flattened


def settings(folder: Path, **records: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "run", "root": str(folder)},
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "records": records,
        }
    )


def row(step: int, reward: float) -> dict[str, Any]:
    return {
        "step": step,
        "num_steps": 9,
        "time": 1e9 + step,
        "reward_mean": reward,
        "reward_terms": {"edge": reward / 10},
        "sampler_idle_fraction": None,
    }


def start(run: Settings, step: int, rewards: list[float]) -> None:
    trackers = Trackers(run)
    trackers.start(step)
    for i, reward in enumerate(rewards):
        trackers.log(row(step + i, reward))
    trackers.close()


def test_nested_numbers_get_names_with_slashes() -> None:
    found = dict(flattened({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": None, "g": "text"}))
    assert found == {"a": 1.0, "b/c": 2.5, "b/d/e": 3.0}


def test_tensorboard_draws_a_resumed_run_once(tmp_path: Path) -> None:
    run = settings(tmp_path, tensorboard=True)
    start(run, 0, [1.0, 2.0, 3.0, 4.0])
    start(run, 2, [30.0, 40.0, 50.0])
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"reward_mean", "reward_terms/edge"}
    curve = [(event.step, event.value) for event in events.Scalars("reward_mean")]
    assert curve == [(0, 1.0), (1, 2.0), (2, 30.0), (3, 40.0), (4, 50.0)]
    (tag,) = [name for name in events.Tags()["tensors"] if name.startswith("settings")]
    assert b'name = "run"' in events.Tensors(tag)[0].tensor_proto.string_val[0]


def evaluate(run: Settings) -> None:
    """Version 2 is evaluated while steps 2 and 3 train."""
    trackers = Trackers(run)
    trackers.start(2)
    trackers.log(row(2, 1.0))
    trackers.log(row(3, 1.0))
    found = {"step": 2, "time": 1e9, "failure_rate": 0.25, "predicate_recall": {"near": 0.5}}
    trackers.log_evaluation(found, 3)
    trackers.log(row(4, 1.0))
    trackers.close()


def test_tensorboard_draws_an_evaluation_at_its_own_version(tmp_path: Path) -> None:
    run = settings(tmp_path, tensorboard=True)
    evaluate(run)
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    names = {name for name in events.Tags()["scalars"] if name.startswith("eval")}
    assert names == {"eval/failure_rate", "eval/predicate_recall/near"}
    assert [(e.step, e.value) for e in events.Scalars("eval/failure_rate")] == [(2, 0.25)]


def test_wandb_draws_an_evaluation_over_its_own_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    evaluate(settings(tmp_path, wandb=True))
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    history = wandb_history(file)
    assert [point["_step"] for point in history] == [2, 3, 4]
    assert (history[1]["eval/step"], history[1]["eval/failure_rate"]) == (2, 0.25)


def test_wandb_goes_on_with_the_same_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = settings(tmp_path, wandb=True, wandb_project="graphs")
    start(run, 0, [1.0, 2.0])
    first = (tmp_path / "run/wandb-id").read_text()
    a_second_ends()
    start(run, 2, [3.0])
    assert (tmp_path / "run/wandb-id").read_text() == first
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(file.name == f"run-{first}.wandb" for file in files)
    history = [point for file in files for point in wandb_history(file)]
    assert [(p["_step"], p["reward_mean"]) for p in history] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert history[0]["reward_terms/edge"] == 0.1
    start(run, 0, [1.0])
    assert (tmp_path / "run/wandb-id").read_text() != first, "from step 0 it is another run"


def a_second_ends() -> None:
    """W&B names a start's folder by the second: two starts of one run in the same share it."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.02)


def wandb_history(file: Path) -> list[dict[str, Any]]:
    points = []
    for record in wandb_records(file):
        if record.HasField("history"):
            items = record.history.item
            names = [item.key or "/".join(item.nested_key) for item in items]
            values = [json.loads(item.value_json) for item in items]
            points.append(dict(zip(names, values, strict=True)))
    return points


def wandb_records(file: Path) -> list[Any]:
    """All of them: W&B's own process may still write after `finish`; the last is of the exit."""
    deadline = time.monotonic() + 60
    while True:
        log = file.read_bytes()[7:]  # after ":W&B", a magic number, a version
        records = [Record.FromString(data) for data in leveldb_records(log)]
        if records and records[-1].HasField("exit"):
            return records
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.05)


def leveldb_records(log: bytes) -> Iterator[bytes]:
    """The whole ones of a LevelDB log shorter than a block: crc, length and type before each."""
    assert len(log) < 32_000
    at = 0
    while at + 7 <= len(log):
        _, length, kind = struct.unpack("<IHB", log[at : at + 7])
        assert kind == 1, "a whole record"
        if at + 7 + length > len(log):
            return
        yield log[at + 7 : at + 7 + length]
        at += 7 + length


HOSTILE = (
    '<answer>{"objects": [{"id": "<b>x</b>.1", "bbox": [0, 0, 500, 500]}], "relationships": []}'
    "</answer>\n```\n# big"
)
MAN = {"id": "man.1", "bbox": [10, 10, 50, 90]}


def scored_group(run: Settings, index: int, text: str) -> TrainGroup:
    """A group about a picture of the run's store, which has been scored."""
    colour = (250, 10 * index, 10)
    image = ImageStore(run.run.files.images).put(encoded(Image.new("RGB", (100, 100), colour)))
    group = train_group([1], [completion([5, 6]), completion([7])], index=index)
    first, second = group.rollout.completions
    prompt = PromptGroup(
        group_id=f"g{index}",
        incarnation=1,
        epoch=0,
        index=index,
        messages=[ChatMessage(role="user", content=[ImagePart()])],
        images=[image],
        sampling=Sampling(),
    )
    answers = [first.model_copy(update={"text": text}), second]
    return group.model_copy(
        update={
            "prompt": prompt,
            "rollout": group.rollout.model_copy(update={"completions": answers}),
            "rewards": [
                Reward(
                    total=total,
                    status="ok",
                    breakdown={},
                    matched=Matched(objects=0, relationships=0),
                )
                for total in (3.0, 1.0)
            ],
            "reference": GroupReference(
                image_size=(100, 100),
                box_space="relative_1000",
                graph=ReferenceGraph.model_validate({"objects": [MAN], "relationships": []}),
            ),
        }
    )


def show(run: Settings) -> None:
    """Three groups of step 4; the settings want two."""
    trackers = Trackers(run)
    trackers.start(0)
    trackers.log(row(4, 1.0))
    trackers.log_answers(4, [scored_group(run, i, f"{i} {HOSTILE}") for i in range(3)])
    trackers.log(row(5, 1.0))
    trackers.close()
    trackers.log(row(6, 1.0))
    trackers.close()


def is_red(picture: Image.Image) -> bool:
    red, green, blue = picture.getpixel((picture.width - 20, picture.height - 20))  # type: ignore[misc]
    return red > 200 and green < 60 and blue < 60


def test_tensorboard_shows_answers_drawn_beside_the_annotated_graphs(tmp_path: Path) -> None:
    run = settings(tmp_path, tensorboard=True)
    show(run)
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    tags = [f"answers/{n}/{kind}" for n in (0, 1) for kind in ("answer", "annotated")]
    assert sorted(events.Tags()["images"]) == sorted(tags)
    drawn = {tag: events.Images(tag)[0] for tag in tags}
    assert {event.step for event in drawn.values()} == {4}
    pictures = [decode_image(event.encoded_image_string) for event in drawn.values()]
    assert {picture.size for picture in pictures} == {(SIDE, SIDE)}
    assert all(map(is_red, pictures))
    assert drawn[tags[0]].encoded_image_string != drawn[tags[1]].encoded_image_string
    (tag,) = [name for name in events.Tags()["tensors"] if name.startswith("answers")]
    text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "`g0`: reward 3 (group 2), ok" in text
    # All of it is code: nothing in it is markup.
    assert "\n    # big" in text
    assert "\n    ```" in text


def test_wandb_gets_a_table_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    show(settings(tmp_path, wandb=True))
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    steps = {point["_step"]: point for point in wandb_history(file)}
    assert sorted(steps) == [4, 5]
    assert not any(name.startswith("answers") for name in steps[5])
    assert any(name.startswith("answers") for name in steps[4])
    staged = [found.read_bytes() for found in (tmp_path / "data").rglob("*") if found.is_file()]
    table = next(json.loads(found) for found in staged if found.startswith(b'{"_type": "table"'))
    rows = [dict(zip(table["columns"], one, strict=True)) for one in table["data"]]
    assert [one["group"] for one in rows] == ["g0", "g1"]
    assert (rows[0]["reward"], rows[0]["group mean"], rows[0]["text"]) == (3.0, 2.0, f"0 {HOSTILE}")
    assert rows[0]["answer"]["path"].endswith(".jpg")
    drawn = [decode_image(found) for found in staged if found.startswith(b"\xff\xd8")]
    assert len(drawn) == 4
    assert all(map(is_red, drawn))


def test_trackio_gets_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="it wants another Pillow than ours: pip install trackio")
    show(settings(tmp_path, trackio=True))
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 4


def test_answers_can_be_left_out_and_a_picture_that_is_gone_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    show(settings(tmp_path / "none", tensorboard=True, answers=0))
    events = EventAccumulator(str(tmp_path / "none/run/tensorboard")).Reload()
    assert events.Tags()["images"] == []
    run = settings(tmp_path, tensorboard=True)
    group = scored_group(run, 0, HOSTILE)
    assert group.prompt is not None
    ImageStore(run.run.files.images).remove([group.prompt.images[0].sha256])
    broken = group.model_copy(update={"rewards": []})
    trackers = Trackers(run)
    trackers.start(0)
    trackers.log_answers(0, [group])
    trackers.log_answers(1, [broken])
    trackers.log(row(1, 1.0))
    trackers.close()
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert [event.step for event in events.Images("answers/0/answer")] == [0]
    assert [event.step for event in events.Scalars("reward_mean")] == [1]
    assert "answers of step 1 cannot be drawn" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
@pytest.mark.parametrize("start", [check_trainer, run_here])
def test_a_missing_package_is_said_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: Callable[[Settings], object]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=f"records.{name} is on .*pip install {name}"):
        start(settings(tmp_path, **{name: True}))
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_is_left_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tensorboard").write_text("in the way")
    trackers = Trackers(settings(tmp_path, tensorboard=True))
    trackers.start(0)
    trackers.log(row(0, 1.0))
    trackers.close()
    assert [
        record.message for record in caplog.records if record.name == "trainer.records.trackers"
    ] == ["TensorBoard failed and is left out from now on"]
