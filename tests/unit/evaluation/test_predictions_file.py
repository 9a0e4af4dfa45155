"""`predictions.jsonl` after any end, and its settings."""

import json
import resource
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
from evaluation.inference.record import InferenceRecord, record_fields
from evaluation.reading.lines import GraphLine, LineObject
from services.errors import ConflictError, SggError
from services.schemas.weights import PolicyInfo
from services.settings import Settings

TEXTS = st.lists(st.text(max_size=20), max_size=12)


def line(number: int, text: str = "") -> GraphLine:
    man = LineObject(id="man.1", bbox=(0, 0, 1, 1))
    return GraphLine(
        image_id=str(number), width=4, height=3, objects=[man], relationships=[], text=text
    )


def write(file: Path, texts: list[str], start: int = 0) -> None:
    with PredictionsFile(file) as predictions:
        for number, text in enumerate(texts[start:], start=start):
            predictions.append(line(number, text))


@given(texts=TEXTS, data=st.data())
def test_a_file_cut_anywhere_is_finished_as_if_never_cut(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    write(folder / "whole", texts)
    whole = (folder / "whole").read_bytes()
    cut = folder / "cut"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with PredictionsFile(cut) as predictions:
        done = list(predictions.lines())
    assert [d.text for d in done] == texts[: len(done)]
    write(cut, texts, start=len(done))
    assert cut.read_bytes() == whole


@given(texts=TEXTS, numbers=st.sets(st.integers(0, 11)))
def test_only_the_named_lines_are_replaced(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], numbers: set[int]
) -> None:
    file = tmp_path_factory.mktemp("replace") / "predictions.jsonl"
    write(file, texts)
    with PredictionsFile(file) as predictions:
        predictions.replace({n: line(n, "new") for n in numbers})
        predictions.append(line(99, "last"))
    found = [msgspec.json.decode(text, type=GraphLine) for text in file.read_text().splitlines()]
    expected = ["new" if n in numbers else text for n, text in enumerate(texts)]
    assert [f.text for f in found] == [*expected, "last"]


def test_a_torn_line_longer_than_a_chunk_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write(file, ["a", "b" * 3_000_000, "c" * 3_000_000])
    file.write_bytes(file.read_bytes()[:-1])
    with PredictionsFile(file) as predictions:
        assert [len(done.text or "") for done in predictions.lines()] == [1, 3_000_000]


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    with PredictionsFile(file) as first:
        for _ in range(2):
            with pytest.raises(ConflictError, match="another process writes"):
                PredictionsFile(file)
            first.replace({})
    with PredictionsFile(file):
        pass


def test_a_foreign_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write(file, ["a"])
    with file.open("a") as stream:
        stream.write("{}\n")
    with (
        PredictionsFile(file) as predictions,
        pytest.raises(ConflictError, match=r"line 2 is not a prediction.*--output"),
    ):
        list(predictions.lines())


def test_a_disk_that_fills_up_is_said_and_costs_one_line(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write(file, ["a"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PredictionsFile(file) as predictions:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, limits[1]))
        try:
            for _ in range(2):  # half a line, then nothing
                with pytest.raises(SggError, match=r"cannot write .*; mend this, then run the"):
                    predictions.append(line(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with PredictionsFile(file) as predictions:
        assert [done.text for done in predictions.lines()] == ["a"]


POLICY = PolicyInfo(
    server_id="s",
    model="m",
    dtype="float32",
    policy_version=3,
    incarnation=1,
    checksum="0" * 64,
    state="ready",
)


def fields(**evaluation: object) -> dict[str, object]:
    settings = Settings.model_validate(
        {"model": {"path": "m"}, "data": {"train": "d"}, "evaluation": evaluation}
    )
    return record_fields(settings, POLICY, "data", 10, 10)


def test_settings_stand_beside_predictions_with_what_came_of_them(tmp_path: Path) -> None:
    record = InferenceRecord(tmp_path, fields())
    record.begin()
    written = json.loads((tmp_path / "predictions.settings.json").read_text())
    assert written["model"] == "m"
    assert written["temperature"] == 0
    assert "result" not in written
    progress = Progress(total=1)
    progress.count(line(0))
    record.end(progress)
    written = json.loads((tmp_path / "predictions.settings.json").read_text())
    assert written["result"]["statuses"] == {"ok": 1}


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    InferenceRecord(tmp_path, fields()).begin()
    InferenceRecord(tmp_path, fields() | {"num_images": 5, "software_version": "9"}).begin()
    before = (tmp_path / "predictions.settings.json").read_text()
    with pytest.raises(ConflictError, match=r"(?s)--output.*max_tokens = 1024, and now it is 7"):
        InferenceRecord(tmp_path, fields(max_tokens=7)).begin()
    with pytest.raises(ConflictError, match="policy_version = 3, and now it is 4"):
        InferenceRecord(tmp_path, fields() | {"policy_version": 4}).begin()
    assert (tmp_path / "predictions.settings.json").read_text() == before


def test_a_record_of_an_earlier_release_is_of_json(tmp_path: Path) -> None:
    earlier = {name: value for name, value in fields().items() if name != "notation"}
    (tmp_path / "predictions.settings.json").write_text(json.dumps(earlier))
    InferenceRecord(tmp_path, fields()).check()
    with pytest.raises(ConflictError, match='notation = null, and now it is "compact"'):
        InferenceRecord(tmp_path, fields() | {"notation": "compact"}).check()


def test_an_instruction_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    def asked(name: str, text: str) -> dict[str, object]:
        (tmp_path / name).write_text(text)
        data = {"train": "d", "template": str(tmp_path / name)}
        settings = Settings.model_validate({"model": {"path": "m"}, "data": data})
        found = record_fields(settings, POLICY, "data", 10, 10)
        assert found["template"] == str(tmp_path / name)
        return found | {"template": "own.txt"}

    assert fields()["instruction_sha256"] is None
    InferenceRecord(tmp_path, asked("own.txt", "Objects?")).begin()
    InferenceRecord(tmp_path, asked("copy.txt", "Objects?")).begin()
    with pytest.raises(ConflictError, match="instruction_sha256"):
        InferenceRecord(tmp_path, asked("other.txt", "All objects?")).begin()
