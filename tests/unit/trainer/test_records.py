import errno
import json
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services import waiting
from services.errors import InvalidInputError, SupersededError
from services.run_folder.events import read_events
from services.run_folder.index import RolloutIndex
from services.run_folder.index_line import RolloutFilter
from services.run_folder.records import read_rollouts, record_lines
from services.schemas.common import Sampling
from services.schemas.groups import TrainGroup
from services.schemas.prompts import PromptGroup
from services.schemas.rewards import Matched, Reward, Status
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings import Settings
from trainer.ranks.watch import RankWatch
from trainer.ranks.write_guard import WriteGuard
from trainer.records.files import RunRecords, ledger_line, step_metrics
from trainer.records.index_lines import MAX_NAMES, sampled_names
from trainer.records.rollout_files import RolloutFiles
from trainer.records.step_lines import StepLines
from trainer.train import train_steps
from trainer.types import Outcome, StepBatch, UnusedGroup

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def settings(folder: Path, **records: Any) -> Settings:
    return Settings.model_validate(
        {
            "run": {"name": "run", "root": str(folder)},
            "model": {"path": "unused"},
            "data": {"train": "unused"},
            "records": records,
        }
    )


def group(
    position: int, totals: list[float], version: int = 0, status: Status = "ok"
) -> TrainGroup:
    name = f"run-e0-r{position}"
    prompt = PromptGroup(
        group_id=name,
        incarnation=1,
        epoch=0,
        index=position,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Scene graph:"}]}],
        images=[],
        sampling=Sampling(n=len(totals)),
        traceparent=f"00-{TRACE}-00f067aa0ba902b7-01",
    )
    completions = [
        Completion(
            text=f"answer {i}",
            token_ids=[1] * (i + 1),
            rollout_logprobs=[-0.5] * (i + 1),
            finish_reason="stop" if i else "length",
            policy_versions=[VersionSpan(policy_version=version, start=0, end=i + 1)],
        )
        for i in range(len(totals))
    ]
    rewards = [
        Reward(
            total=total,
            status=status,
            breakdown={"edge": total / 10},
            matched=Matched(objects=1, relationships=0),
        )
        for total in totals
    ]
    return TrainGroup(
        position=position,
        index=position,
        prompt=prompt,
        rollout=RolloutGroup(
            group_id=name,
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=[1],
            completions=completions,
            sampling_s=0.1,
        ),
        rewards=rewards,
        advantages=[t - sum(totals) / len(totals) for t in totals],
    )


def rows(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in record_lines(file)]


def write(records: RunRecords, step: int, groups: list[TrainGroup], logprobs: list[Any]) -> None:
    """A step's groups, to their end."""
    records.rollouts.write(step, groups, logprobs)
    records.rollouts.wait()


def test_resume_moves_uncommitted_lines_and_groups_aside(tmp_path: Path) -> None:
    run, folder = settings(tmp_path), tmp_path / "run"
    records = RunRecords(run, 0)
    records.cut_to(0)
    for step in range(4):
        records.step({"step": step}, {"step": step, "group_ids": [f"g{step}"]})
        write(records, step, [group(step, [1.0, 2.0])], [[-0.1], [-0.1, -0.2]])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "torn')
    records = RunRecords(run, 0)
    records.cut_to(2)
    assert rows(folder / "metrics.jsonl") == [0, 1]
    assert rows(folder / "ledger.jsonl") == [0, 1]
    assert len((folder / "rolled_back.jsonl").read_text().splitlines()) == 5
    assert [bool(read_rollouts(folder, step)) for step in range(4)] == [True, True, False, False]
    aside = folder / "rollouts/rolled_back/step-000003.rank0.jsonl.gz"
    assert rows(aside) == [3]
    records.step({"step": 2}, {"step": 2})
    assert rows(folder / "ledger.jsonl") == [0, 1, 2]
    write(records, 3, [group(3, [1.0, 2.0])], [[-0.1], [-0.1, -0.2]])
    RunRecords(run, 0).cut_to(2)
    assert rows(aside) == [3], (
        "the last attempt: a run that goes down again and again fills no disk"
    )


def test_a_line_that_a_full_disk_cuts_is_written_whole_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, file = RunRecords(settings(tmp_path), 0), tmp_path / "run/ledger.jsonl"
    records.cut_to(0)
    records.step({"step": 0}, {"step": 0})
    opened, left = Path.open, [9]

    def full(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path == file and left and "a" in mode:
            with opened(path, "ab") as stream:
                stream.write(b"{" * left.pop())
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)
    records.step({"step": 1}, {"step": 1})
    monkeypatch.undo()
    assert rows(file) == [0, 1]


def test_numbers_that_are_not_finite_stay_json(tmp_path: Path) -> None:
    records, folder = RunRecords(settings(tmp_path), 0), tmp_path / "run"
    records.cut_to(0)
    row = {"step": 0, "loss": math.nan, "grad_norm": math.inf, "terms": {"edge": -math.inf}}
    records.step(row, {"step": 0})
    write(records, 0, [group(0, [1.0])], [[math.nan]])
    for file in ("metrics.jsonl", "rollouts/step-000000.rank0.jsonl.gz"):
        json.loads(record_lines(folder / file)[0], parse_constant=pytest.fail)
    wanted = {"step": 0, "loss": None, "grad_norm": None, "terms": {"edge": None}}
    assert json.loads((folder / "metrics.jsonl").read_text()) == wanted


def test_a_trainer_that_was_taken_for_dead_writes_nothing(tmp_path: Path) -> None:
    """Whatever it is about to write when it wakes up."""
    run, folder = settings(tmp_path), tmp_path / "run"
    folder.mkdir()
    guards = [WriteGuard(folder), WriteGuard(folder)]
    old, new = (RunRecords(run, 0, guard) for guard in guards)
    watch = RankWatch(folder / "ranks", rank=0, size=1, limit_s=60, guard=guards[0])
    watch.start()
    guards[0].take(1)
    old.cut_to(0)
    watch.enter("train", 0)
    guards[1].take(2)
    new.cut_to(0)
    write(new, 0, [group(1, [1.0])], [[-0.5]])
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    writes: list[Callable[[], None]] = [
        lambda: old.rollouts.write(0, [group(1, [1.0])], [[-9.0]]),
        lambda: old.rollouts.finish(0, []),
        lambda: old.step({"step": 0}, {"step": 0}),
        lambda: old.evaluations([{"step": 0}], 0),
        lambda: old.committed(9),
        lambda: old.cut_to(0),
    ]
    for each in writes:
        with pytest.raises(SupersededError, match="incarnation 2 of this run has started"):
            each()
    old.events.note("published", "nobody is told")
    watch.stop("it is superseded")
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_whatever_fails_in_a_trainer_that_was_taken_for_dead_is_its_successor(
    tmp_path: Path,
) -> None:
    """A later one removes the file that it still writes; a supervisor must not start it again."""
    old, new = WriteGuard(tmp_path), WriteGuard(tmp_path)
    old.take(1)
    with pytest.raises(FileNotFoundError), old.explaining():
        (tmp_path / "gone").rename(tmp_path / "whole")
    new.take(2)
    with pytest.raises(SupersededError, match="incarnation 2") as found, old.explaining():
        (tmp_path / "gone").rename(tmp_path / "whole")
    assert isinstance(found.value.__cause__, FileNotFoundError)


def test_a_trainer_that_waited_for_room_looks_again_whether_it_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, append = WriteGuard(tmp_path / "run"), StepLines.append
    records, full = RunRecords(settings(tmp_path), 0, guard), [True]
    guard.take(1)
    records.cut_to(0)

    def superseded_meanwhile(table: StepLines, *rows: Any) -> None:
        if full and full.pop():
            WriteGuard(tmp_path / "run").take(2)
            raise OSError(errno.ENOSPC, "No space left on device")
        append(table, *rows)

    monkeypatch.setattr(StepLines, "append", superseded_meanwhile)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.0)
    with pytest.raises(SupersededError):
        records.step({"step": 0}, {"step": 0})
    assert (tmp_path / "run/ledger.jsonl").read_text() == ""


def test_a_trainer_that_was_taken_for_dead_trains_nothing(tmp_path: Path) -> None:
    """Redis may have been emptied: then its groups are of the later one's versions."""
    old = WriteGuard(tmp_path)
    old.take(1)
    WriteGuard(tmp_path).take(2)
    run: Any = SimpleNamespace(
        stoppable=nullcontext,
        steps=lambda: iter([0]),
        phase=lambda _: nullcontext(),
        batches=SimpleNamespace(take_with_advantages=lambda _: None, prepared=lambda: None),
        guard=old,
    )
    with pytest.raises(SupersededError):
        train_steps(run)


def test_first_start_has_nothing_to_cut(tmp_path: Path) -> None:
    RunRecords(settings(tmp_path), 0).cut_to(0)
    assert (tmp_path / "run/ledger.jsonl").read_text() == ""
    assert not (tmp_path / "run/rolled_back.jsonl").exists()


def test_other_ranks_write_only_their_groups(tmp_path: Path) -> None:
    run, folder = settings(tmp_path), tmp_path / "run"
    other = RunRecords(run, 1)
    other.cut_to(0)
    write(other, 0, [group(1, [1.0])], [[-0.1]])
    assert not (folder / "metrics.jsonl").exists()
    main = RunRecords(run, 0)
    write(main, 0, [group(0, [1.0])], [[-0.1]])
    main.cut_to(0)
    assert [record.position for record in read_rollouts(folder, 0)] == [1]


def test_a_group_is_recorded_whole_and_read_back(tmp_path: Path) -> None:
    records, made = RunRecords(settings(tmp_path), 0), group(7, [1.0, 3.0])
    write(records, 5, [made], [[-0.25], [-0.5, math.nan]])
    (record,) = read_rollouts(tmp_path / "run", 5)
    assert (record.step, record.trace_id) == (5, TRACE)
    assert record.policy_logprobs[0] == [-0.25]
    assert record.policy_logprobs[1] == [-0.5, None]
    assert record.prompt == made.prompt
    assert record.rollout == made.rollout
    assert record.rewards == made.rewards
    assert record.advantages == made.advantages


def test_texts_with_line_ends_of_their_own_are_read_back(tmp_path: Path) -> None:
    records, made = RunRecords(settings(tmp_path), 0), group(7, [1.0, 3.0])
    made.rollout.completions[0].__dict__["text"] = "a\u2028b\u2029c\x85d\re"
    write(records, 5, [made], [[-0.25], [-0.5, -0.5]])
    (record,) = read_rollouts(tmp_path / "run", 5)
    assert record.rollout.completions[0].text == "a\u2028b\u2029c\x85d\re"


def test_a_group_that_is_cut_is_said(tmp_path: Path) -> None:
    write(RunRecords(settings(tmp_path), 0), 5, [group(7, [1.0])], [[-0.25], [-0.5]])
    (file,) = (tmp_path / "run/rollouts").glob("*.jsonl.gz")
    earlier = file.with_suffix("")  # as an earlier release wrote it
    earlier.write_bytes(record_lines(file)[0] + b"\n")
    whole = file.read_bytes()
    for cut in (whole[:-9], whole[:40] + b"?" + whole[41:], whole + b"{"):
        file.write_bytes(cut)
        with pytest.raises(InvalidInputError, match=r"step-000005.rank0.jsonl.gz is cut or damag"):
            read_rollouts(tmp_path / "run", 5)
    file.unlink()
    assert [record.position for record in read_rollouts(tmp_path / "run", 5)] == [7]
    with earlier.open("a") as stream:
        stream.write('{"step": 5, "pos')
    with pytest.raises(InvalidInputError, match=r"step-000005.rank0.jsonl:2 is cut or damaged"):
        read_rollouts(tmp_path / "run", 5)


def test_old_groups_go_with_the_checkpoint_after_them(tmp_path: Path) -> None:
    records = RunRecords(settings(tmp_path, keep_rollouts=2), 0)
    for step in range(6):
        write(records, step, [group(step, [1.0])], [[-0.1]])
    assert len(list((tmp_path / "run/rollouts").iterdir())) == 6, "none is committed"
    records.committed(4)
    left = [bool(read_rollouts(tmp_path / "run", step)) for step in range(6)]
    assert left == [False, False, True, True, True, True]
    records.cut_to(4)
    records.committed(8)
    aside = list((tmp_path / "run/rollouts").rglob("step-*.jsonl*"))
    assert aside == [], "those that were rolled back go too"


NAMES = """{"objects": [{"id": "Wine_Glass.1"}, {"id": "caf\\u00e9"}, {"id": "wine glass.2"}],
"relationships": [{"subject": "wine glass.1", "predicate": "on", "object": "table.1"}, {"pre"""


def test_the_index_says_where_each_group_is_and_what_is_in_it(tmp_path: Path) -> None:
    run, folder = settings(tmp_path), tmp_path / "run"
    made = group(7, [1.0, 3.0], version=4)
    made.rollout.completions[1].__dict__["text"] = NAMES
    for rank, groups in enumerate(([made, group(3, [2.0])], [group(5, [1.0], status="no_answer")])):
        records = RunRecords(run, rank)
        records.cut_to(5)
        logprobs = [[-0.5] for each in groups for _ in each.rewards]
        records.rollouts.write(5, groups[:1], logprobs)  # an attempt that was skipped
        records.rollouts.write(5, groups, logprobs)
        records.rollouts.finish(5, [])
        records.close()
    index = RolloutIndex(folder)
    lines = index.page().lines
    assert [line.position for line in lines] == [7, 5, 3]
    assert [index.read_record(line).position for line in lines] == [7, 5, 3]
    first = lines[0]
    assert (first.mean, first.std, first.min, first.max) == (2.0, 1.0, 1.0, 3.0)
    assert (first.row, first.truncated, first.versions) == (7, 1, [4])
    assert (first.predicates, first.objects) == (["on"], ["wine glass", "café", "table"])
    assert [line.statuses for line in lines] == [{"ok": 2}, {"no_answer": 1}, {"ok": 1}]
    assert index.page(RolloutFilter(text="WINE_glass")).lines == lines[:1]


def test_names_of_a_line_are_bounded() -> None:
    many = "".join(f'{{"id": "{i}{"x" * 99}.1"}}' for i in range(99)) + '{"id": "y.1"}' * 2
    predicates, objects = sampled_names([many])
    assert (predicates, len(objects), objects[0]) == ([], MAX_NAMES, "y")
    assert max(map(len, objects)) == 40


def test_names_are_found_in_the_compact_notation() -> None:
    answers = [
        '<answer>\nobjects\nA Wine_Glass 1 2 3 4\nB "route 66" 0 0 9 9\nC dog 1 2\nrelationships\n'
        "A on_top of B\nend\n</answer>",
        "objects\nA wine glass\nB dog\nAA u.s. flag.7\nrelationships\nA near AA\nB on to",  # cut
    ]
    predicates, objects = sampled_names(answers, "compact")
    assert predicates == ["on top of", "near"]
    assert objects == ["wine glass", "dog", "route 66", "u", "on to"]
    assert sampled_names(answers) == ([], [])


def test_groups_that_were_not_trained_on_are_kept_and_cut_with_their_step(tmp_path: Path) -> None:
    records, folder = RunRecords(settings(tmp_path, keep_rollouts=2), 0), tmp_path / "run"
    records.cut_to(0)
    for step in range(2):
        unused = [
            UnusedGroup(
                state="dead", position=1, group_id="d", index=4, group=None, reason="no image"
            ),
            UnusedGroup(
                state="stale", position=0, group_id="run-e0-r0", index=0, group=group(0, [1.0, 2.0])
            ),
        ]
        records.rollouts.write(step, [group(2 + step, [1.0])], [[-0.1]])
        records.rollouts.finish(step, unused)
    records.close()
    assert [len(read_rollouts(folder, step)) for step in range(2)] == [1, 1], "those trained on"
    index = RolloutIndex(folder)
    states = [(line.step, line.state) for line in index.page().lines]
    assert states[:3] == [(1, "trained"), (1, "dead"), (1, "stale")]
    stale = index.read_record(index.page(RolloutFilter(state="stale")).lines[0])
    assert (stale.step, stale.rollout.completions[0].text) == (1, "answer 0")
    assert (stale.rewards[1].total, stale.policy_logprobs) == (2.0, [])
    (dead,) = index.page(RolloutFilter(state="dead", step_to=0)).lines
    assert (dead.row, dead.reason, dead.file) == (4, "no image", None)
    records = RunRecords(settings(tmp_path, keep_rollouts=2), 0)
    records.cut_to(1)
    assert [line.step for line in index.page().lines] == [0, 0, 0]
    aside = folder / "rollouts/rolled_back"
    assert rows(aside / "index.rank0.jsonl") == [1, 1, 1]
    assert rows(aside / "step-000001.unused.jsonl.gz") == [1]
    records.committed(9)
    assert not list((folder / "rollouts").rglob("step-*")), "the index alone stays"


def test_events_are_cut_back_with_their_step(tmp_path: Path) -> None:
    records, folder = RunRecords(settings(tmp_path), 0), tmp_path / "run"
    records.events.note("server_joined", "before the file is cut nothing is written")
    records.cut_to(0)
    records.step({"step": 0}, {"step": 0})
    records.events.note("published", "version 1 is served", 0)
    records.events.step = 1
    with pytest.raises(ValueError, match="no room"), records.events.failures():
        raise ValueError("no room")
    records.step({"step": 1}, {"step": 1})
    RunRecords(settings(tmp_path), 1).events.note("started", "of another rank")
    RunRecords(settings(tmp_path), 0).cut_to(1)
    found = [(event.step, event.kind) for event in read_events(folder)]
    assert found == [(0, "published"), (1, "rolled_back")]
    assert "ValueError: no room" in (folder / "rolled_back.jsonl").read_text()


def test_groups_wait_for_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, refused = Path.write_bytes, [OSError(errno.ENOSPC, "No space left on device")]

    def write_bytes(path: Path, text: bytes) -> int:
        if refused:
            written(path, text[:9])
            raise refused.pop()
        return written(path, text)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    monkeypatch.setattr(waiting, "PAUSE_S", 0.001)
    records = RunRecords(settings(tmp_path), 0)
    write(records, 0, [group(3, [1.0])], [[-0.1]])
    assert [record.position for record in read_rollouts(tmp_path / "run", 0)] == [3]


def test_a_step_is_written_beside_the_next_and_a_checkpoint_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, gate = Path.write_bytes, threading.Event()

    def write_bytes(path: Path, text: bytes) -> int:
        assert gate.wait(60)
        return written(path, text)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    records = RunRecords(settings(tmp_path), 0)
    records.rollouts.write(0, [group(3, [1.0])], [[-0.1]])
    records.rollouts.finish(0, [])
    assert RolloutIndex(tmp_path / "run").page().lines == []
    threading.Timer(0.05, gate.set).start()
    records.sync()
    (line,) = RolloutIndex(tmp_path / "run").page().lines
    assert RolloutIndex(tmp_path / "run").read_record(line).position == 3


def test_what_fails_beside_a_step_is_raised_by_what_comes_next(tmp_path: Path) -> None:
    """A later trainer has started after the call: nothing of the step is left, also no line."""

    def check() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise SupersededError(1)

    methods: list[Callable[[RolloutFiles], None]] = [
        lambda files: files.write(1, [], []),
        lambda files: files.committed(1),
        RolloutFiles.sync,
        RolloutFiles.close,
    ]
    for method in methods:
        files = RolloutFiles(tmp_path, rank=0, keep=0, check=check)
        files.write(0, [group(3, [1.0])], [[-0.1]])
        files.finish(0, [])
        with pytest.raises(SupersededError):
            method(files)
        assert not list(tmp_path.iterdir())


def test_trainers_with_one_process_number_have_drafts_of_their_own(tmp_path: Path) -> None:
    """In containers both may have it: the one taken for dead leaves its successor's draft alone."""
    checks = iter(range(2))

    def refuse() -> None:
        if next(checks):  # its draft is written
            raise SupersededError(1)

    old = RolloutFiles(tmp_path, rank=0, keep=0, check=refuse)

    def meanwhile() -> None:  # before the successor's draft gets its name
        if list(tmp_path.glob("*.draft-*")):
            old.write(0, [group(3, [1.0])], [[-0.1]])
            with pytest.raises(SupersededError):
                old.wait()

    new = RolloutFiles(tmp_path, rank=0, keep=0, check=meanwhile)
    new.write(0, [group(3, [1.0])], [[-0.1]])
    new.wait()
    assert [file.name for file in tmp_path.iterdir()] == ["step-000000.rank0.jsonl.gz"]


def test_metrics_of_a_step() -> None:
    two_versions = group(1, [2.0, 2.0], version=3, status="no_answer")
    two_versions.rollout.completions[1].policy_versions[:] = [
        VersionSpan(policy_version=version, start=i, end=i + 1) for i, version in enumerate((3, 5))
    ]
    batch = StepBatch(
        groups=[
            group(0, [1.0, 3.0], version=4),
            two_versions,
        ],
        outcome=Outcome(stale=["a"], dead=["b", "c"], replaced=["d"]),
    )
    found = step_metrics(batch, policy_version=5)
    assert found == {
        "reward_mean": 2.0,
        "reward_std": pytest.approx(math.sqrt(0.5)),
        "reward_min": 1.0,
        "reward_max": 3.0,
        "reward_terms": {"edge": pytest.approx(0.2)},
        "failure_rate": 0.5,
        "failures": {
            "no_answer": 0.5,
            "invalid_json": 0.0,
            "schema_violation": 0.0,
            "too_large": 0.0,
        },
        "policy_lag_mean": pytest.approx((3 * 1 + 2 * 2 + 1 * 0) / 6),
        "policy_lag_max": 2,
        "num_groups": 2,
        "num_stale": 1,
        "num_dead": 2,
        "num_replaced": 1,
        "groups_without_spread": 1,
        "completion_length_mean": 1.5,
        "completion_length_max": 2,
        "truncated_rate": 0.5,
        "num_completions": 4,
        "num_tokens": 6,
    }
    # Its answers earn the same, and their elements do not.
    learns = two_versions.model_copy(update={"element_advantages": [[0.0, 1.0], [0.0, -1.0]]})
    batch = batch.model_copy(update={"groups": [batch.groups[0], learns]})
    assert step_metrics(batch, policy_version=5)["groups_without_spread"] == 0
    ledger = ledger_line(batch, 5)
    assert ledger["group_ids"] == ["run-e0-r0", "run-e0-r1"]
