import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.errors import ConflictError, SettingsError, SggError
from services.settings import Settings
from tests.alone import Alone
from trainer.checkpoints.checkpoint import CheckpointStore, DataOrder, TrainerState
from trainer.checkpoints.inputs import Inputs, grpo_inputs
from trainer.checkpoints.manifest import MANIFEST_FILE
from trainer.checkpoints.resume import restore
from trainer.collection.cursor import CursorState
from trainer.ranks.write_guard import WriteGuard

ORDER = DataOrder(seed=0, num_rows=64, group_size=4)
BIG = 2 * 1024 * 1024


class Engine:
    """Saves what a rank would, in kind: a large file in a folder, and a small one."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def save(self, folder: Path) -> None:
        (folder / "deepspeed").mkdir()
        torch.save(torch.zeros(BIG // 4), folder / "deepspeed/weights.pt")
        torch.save(torch.get_rng_state(), folder / "rng-0.pt")

    def load_state(self, folder: Path) -> None:
        self.loaded.append(folder.name)


@pytest.fixture
def guard(tmp_path: Path) -> WriteGuard:
    guard = WriteGuard(tmp_path)
    guard.take(1)
    return guard


@pytest.fixture
def store(tmp_path: Path, guard: WriteGuard) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", 2, guard)


def write(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        state = TrainerState(
            step=step, cursor=CursorState(low=4 * step), incarnation=1, data_order=ORDER
        )
        store.write(state, Engine().save, Alone())


def start(
    store: CheckpointStore,
    guard: WriteGuard,
    order: DataOrder = ORDER,
    inputs: Inputs | None = None,
    *,
    resume: bool = True,
    allow_changes: bool = False,
    meanwhile: Callable[[], None] = lambda: None,
) -> tuple[TrainerState, list[str]]:
    engine, how = Engine(), {"resume": resume, "allow_changes": allow_changes}
    now = TrainerState(incarnation=guard.latest(), data_order=order, inputs=inputs or {})

    def take(after: int) -> int:
        meanwhile()
        return after + 1

    state = restore(store, engine.load_state, Alone(), now, take, **how)
    return state, engine.loaded


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def test_the_newest_is_resumed_and_older_ones_go(store: CheckpointStore, guard: WriteGuard) -> None:
    write(store, 2, 4, 6)
    assert names(store) == ["step-000004", "step-000006"]
    state, loaded = start(store, guard)
    assert (state.step, state.cursor.low, loaded) == (6, 24, ["step-000006"])
    write(store, 6)  # after a rollback to 4, say
    assert names(store) == ["step-000004", "step-000006"]


def test_what_an_earlier_start_writes_until_it_is_shut_out_is_resumed(
    store: CheckpointStore, guard: WriteGuard
) -> None:
    write(store, 2)
    state, loaded = start(store, guard, meanwhile=lambda: write(store, 4))
    assert (state.step, state.cursor.low, loaded) == (4, 16, ["step-000004"])


def test_a_wrong_start_shuts_nobody_out(store: CheckpointStore, guard: WriteGuard) -> None:
    write(store, 2)
    taken: list[str] = []
    with pytest.raises(SettingsError, match="add --resume"):
        start(store, guard, resume=False, meanwhile=lambda: taken.append("taken"))
    assert taken == []


def test_what_an_earlier_release_wrote_is_read() -> None:
    """Its order of the data had an instruction."""
    text = TrainerState(step=3, data_order=ORDER).model_dump_json()
    earlier = text.replace('"group_size":4', '"group_size":4,"instruction":null')
    assert earlier != text
    assert TrainerState.model_validate_json(earlier).data_order == ORDER


def test_nothing_to_resume_is_step_0(
    store: CheckpointStore, guard: WriteGuard, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    state, loaded = start(store, guard)
    assert (state.step, loaded) == (0, [])
    assert "nothing to resume" in caplog.text


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "name", "says"),
    [
        (Path.unlink, "deepspeed/weights.pt", "deepspeed/weights.pt is missing"),
        (cut, "deepspeed/weights.pt", "deepspeed/weights.pt has"),
        (cut, "trainer.json", "trainer.json has"),
        (flip, "rng-0.pt", "rng-0.pt is damaged"),
        (Path.unlink, MANIFEST_FILE, f"{MANIFEST_FILE} is missing"),
        (cut, MANIFEST_FILE, f"{MANIFEST_FILE} is damaged"),
    ],
)
def test_a_torn_one_is_skipped_with_what_is_wrong(
    store: CheckpointStore,
    guard: WriteGuard,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
    name: str,
    says: str,
) -> None:
    write(store, 2, 4)
    harm(store.root / "step-000004" / name)
    state, loaded = start(store, guard)
    assert (state.step, loaded) == (2, ["step-000002"])
    assert "step-000004 is torn" in caplog.text
    assert says in caplog.text
    harm(store.root / "step-000002" / name)
    with pytest.raises(SettingsError, match=f"no checkpoint in .* step-000002: {says}"):
        start(store, guard)


def test_a_torn_one_does_not_count_among_those_that_are_kept(
    store: CheckpointStore, guard: WriteGuard
) -> None:
    write(store, 2, 4)
    cut(store.root / "step-000004/trainer.json")
    write(store, 6)
    assert names(store) == ["step-000002", "step-000004", "step-000006"]


def write_until_killed(root: Path) -> None:
    guard = WriteGuard(root)
    guard.join(1)

    def killed(folder: Path) -> None:
        Engine().save(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    state = TrainerState(step=4, incarnation=1)
    CheckpointStore(root / "checkpoints", 2, guard).write(state, killed, Alone())


def test_a_kill_while_writing_leaves_a_draft_that_is_removed(
    tmp_path: Path, store: CheckpointStore, guard: WriteGuard
) -> None:
    write(store, 2)
    # Not a fork: torch's threads do not survive one.
    child = multiprocessing.get_context("spawn").Process(
        target=write_until_killed, args=(tmp_path,)
    )
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert names(store) == [".draft-000004-1", "step-000002"]
    assert start(store, guard)[0].step == 2
    assert names(store) == ["step-000002"]


def test_a_full_disk_is_waited_for(
    tmp_path: Path,
    guard: WriteGuard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", 2, guard, timeout_s=60)
    write(store, 1)
    usage, full = shutil.disk_usage(tmp_path), [BIG // 2, BIG // 2, 4 * BIG]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=full[0]))
    monkeypatch.setattr(time, "sleep", lambda _: full.pop(0))
    write(store, 2)
    assert names(store) == ["step-000001", "step-000002"]
    assert full == [4 * BIG], "it waited twice"
    assert "has no room (a checkpoint takes 2.0 MiB, 1.0 MiB free)" in caplog.text


def test_a_save_without_room_leaves_the_last_one(store: CheckpointStore) -> None:
    write(store, 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, before[1]))
    try:
        with pytest.raises(SggError, match=r"after step 4 .* last whole one is step-000002"):
            write(store, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(store) == ["step-000002"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": 1}, "run.seed was 0 .* is 1 now"),
        ({"group_size": 8}, "trainer.group_size was 4 .* is 8 now"),
        ({"num_rows": 63}, "usable rows of data.train was 64 .* is 63 now"),
    ],
)
def test_another_data_order_is_refused(
    store: CheckpointStore, guard: WriteGuard, changed: dict[str, int], says: str
) -> None:
    write(store, 2)
    with pytest.raises(SettingsError, match=f"--resume: .*{says}"):
        start(store, guard, ORDER.model_copy(update=changed))


def test_another_number_of_ranks_is_refused(store: CheckpointStore, guard: WriteGuard) -> None:
    store.write(TrainerState(step=2, num_ranks=2, data_order=ORDER), Engine().save, Alone())
    with pytest.raises(SettingsError, match=r"trainer.num_ranks was 2 .* is 1 now"):
        start(store, guard)


def test_a_start_from_0_over_checkpoints_is_refused(
    store: CheckpointStore, guard: WriteGuard
) -> None:
    write(store, 2)
    with pytest.raises(SettingsError, match=r"add --resume .* another run\.name"):
        start(store, guard, resume=False)
    shutil.rmtree(store.root)
    assert start(store, guard, resume=False)[0].step == 0


def test_two_starts_never_have_one_number(tmp_path: Path) -> None:
    """Redis gives them out, and forgets what it gave when it loses its data."""
    first, second = WriteGuard(tmp_path), WriteGuard(tmp_path)
    assert first.take(1)
    assert not second.take(1)
    first.check()
    assert second.take(2)
    with pytest.raises(ConflictError, match="incarnation 1 is superseded"):
        first.check()


def test_an_old_trainer_is_shut_out(
    tmp_path: Path, store: CheckpointStore, guard: WriteGuard
) -> None:
    write(store, 2)
    later = WriteGuard(tmp_path)
    state, _ = start(store, later)
    later.take(state.incarnation)
    with pytest.raises(ConflictError, match=r"incarnation 1 is superseded: incarnation 2"):
        write(store, 4)
    with pytest.raises(ConflictError):
        guard.take(1)
    assert "step-000004" not in names(store)
    later.check()


def test_other_inputs_want_a_flag(
    tmp_path: Path, store: CheckpointStore, guard: WriteGuard, caplog: pytest.LogCaptureFixture
) -> None:
    """Dataset, instruction, temperature, rubric and algorithm; the message has both values."""
    make_toy(tmp_path, num_train=4, num_heldout=4)
    own = tmp_path / "own.txt"
    own.write_text("Write {format} as JSON.")
    term = tmp_path / "my_rewards.py"
    term.write_text("def polite(predicted, reference): return 1")
    terms = {"terms": [f"{term}:polite"]}

    def inputs(train: str = "train", template: Path = own, **changes: dict[str, Any]) -> Inputs:
        data = {"train": str(tmp_path / f"{train}.parquet"), "template": str(template)}
        tree = {"model": {"path": "none"}, "data": data, **changes}
        return grpo_inputs(Settings.model_validate(tree), open_dataset(data["train"]))

    frozen = inputs(trainer={"freeze_vision_tower": True})
    assert frozen.keys() - inputs().keys() == inputs(lora={"rank": 4}).keys() - inputs().keys()
    base = [value for name, value in frozen.items() if name.startswith("model.path")]
    assert base == ["none"], "a checkpoint lacks the model's frozen part"
    with_terms = inputs(reward=terms)
    term.write_text("def polite(predicted, reference): return 0")
    assert inputs(reward=terms) != with_terms
    then = inputs()
    store.write(TrainerState(step=2, data_order=ORDER, inputs=then), Engine().save, Alone())
    assert start(store, guard, inputs=inputs())[0].step == 2
    hotter = inputs(
        sampling={"temperature": 0.7},
        reward={"rubric": "recall"},
        algorithm={"credit": "element", "beta": 0.04},
    )
    with pytest.raises(SettingsError, match="--allow-changes") as refused:
        start(store, guard, inputs=hotter)
    assert "  sampling.temperature: 1 then, 0.7 now\n" in refused.value.message
    assert "  reward.rubric: balanced then, recall now\n" in refused.value.message
    assert "  algorithm.credit: answer then, element now\n" in refused.value.message
    assert "  algorithm.beta: 0.0 then, 0.04 now\n" in refused.value.message
    assert refused.value.message.count(" then, ") == 4
    own.with_name("other.txt").write_text("Write {format} at once.")
    other = inputs("heldout", own.with_name("other.txt"))
    with pytest.raises(SettingsError) as refused:
        start(store, guard, inputs=other)
    for name in ("data.train", "the files of data.template and data.vocabulary"):
        assert f"  {name}: {then[name]} then, {other[name]} now\n" in refused.value.message
    assert start(store, guard, inputs=other, allow_changes=True)[0].step == 2
    assert f"data.train: {then['data.train']} then" in caplog.text
