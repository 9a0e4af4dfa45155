"""A stop and a kill -9 at random points: a synchronous run ends as if nothing had happened.

Two runs of the same seed on the same services: one goes through, the other is stopped, killed and
resumed.
They also show that lag 0 repeats itself, that rows with damaged images cost themselves alone, and
that groups of zero variance are replaced by the same others.
"""

import json
import os
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from scene_data.sampler import EpochSampler
from services.run_folder.events import read_events
from services.run_folder.index import RolloutIndex
from tests.e2e.conftest import TrainingServices
from tests.e2e.training_run import Run, lay_out, wait_for_step
from tests.processes import sgg_process

NUM_ROWS = 64
STEPS = 6
GROUPS = 4
DAMAGED = (2, 9)
"""Positions whose images do not decode."""
TOLERANCE = 1e-4
"""Between losses of two runs: vLLM puts requests together by when they come, and float sums depend
on that."""


@pytest.fixture(scope="module")
def data(training_services: TrainingServices, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy scenes, two of them with a file that breaks off in the middle."""
    import pyarrow.parquet as pq

    table = pq.read_table(training_services.toy / "train.parquet")
    order = EpochSampler(NUM_ROWS, seed=0)
    rows: list[dict[str, Any]] = table.to_pylist()
    for position in DAMAGED:
        image = rows[order.at(position)[1]]["image"]
        image["bytes"] = image["bytes"][: len(image["bytes"]) // 2]
    spoilt = tmp_path_factory.mktemp("spoilt") / "train.parquet"
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), spoilt)
    return spoilt


def lay_out_run(services: TrainingServices, root: Path, data: Path, transport: Any) -> Run:
    return lay_out(
        services,
        root,
        transport,
        data=data,
        algorithm={"loss": "dapo", "dynamic_sampling": True, "max_replaced": 3},
        num_steps=STEPS,
        num_ranks=2,
        groups_per_step=GROUPS,
        max_policy_lag=0,
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def whole(
    training_services: TrainingServices, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Nothing happens to it. Asked to resume where there is nothing, it starts from 0."""
    run = lay_out_run(training_services, tmp_path_factory.mktemp("whole"), data, "shm")
    with sgg_process(run.log, "train", "--config", str(run.config), "--resume") as process:
        assert process.wait(300) == 0, run.log.read_text()[-4000:]
    assert "nothing to resume" in run.log.read_text()
    return run


@pytest.fixture(scope="module")
def killed(training_services: TrainingServices, data: Path) -> Run:
    """Told to stop in the middle of a step, killed in the middle of another, and resumed twice.

    Weights go through the run's folder, which is the server's.
    """
    run = lay_out_run(training_services, training_services.server.settings.run.root, data, "disk")
    chance = random.Random(5)
    with ExitStack() as stack:
        for step in (2, 4):
            process = stack.enter_context(
                sgg_process(run.log, "train", "--config", str(run.config), "--resume")
            )
            wait_for_step(run, step, process)
            time.sleep(chance.uniform(0.0, 0.2))  # in the step after it
            if step == 2:
                process.terminate()
                assert process.wait(120) == os.EX_TEMPFAIL, run.log.read_text()[-4000:]
                num_done = len(run.rows("ledger.jsonl"))
                assert (run.folder / f"checkpoints/step-{num_done:06d}").is_dir()
            else:
                os.kill(pid_of(run, rank=chance.randrange(2)), signal.SIGKILL)
                assert process.wait(120) == 128 + signal.SIGKILL
        last = stack.enter_context(
            sgg_process(run.log, "train", "--config", str(run.config), "--resume")
        )
        assert last.wait(300) == 0, run.log.read_text()[-4000:]
    return run


def pid_of(run: Run, rank: int) -> int:
    return int(json.loads((run.folder / f"ranks/rank-{rank}.json").read_text())["pid"])


def test_the_ledger_is_that_of_the_uninterrupted_run(whole: Run, killed: Run) -> None:
    ledger = killed.rows("ledger.jsonl")
    assert [row["step"] for row in ledger] == list(range(STEPS))
    assert ledger == whole.rows("ledger.jsonl")
    used = [name for row in ledger for name in row["group_ids"]]
    assert len(used) == len(set(used)) == GROUPS * STEPS
    undone = [row for row in killed.rows("rolled_back.jsonl") if "group_ids" in row]
    assert undone, "a kill between checkpoints undoes at least one step"


def test_losses_rewards_and_gradients_are_those_of_the_uninterrupted_run(
    whole: Run, killed: Run
) -> None:
    metrics = [run.rows("metrics.jsonl") for run in (whole, killed)]
    assert [row["step"] for row in metrics[1]] == list(range(STEPS))
    for name in ("loss", "grad_norm", "reward_mean", "num_tokens"):
        there, here = ([row[name] for row in rows] for rows in metrics)
        assert here == pytest.approx(there, abs=TOLERANCE, rel=1e-3), name
    assert len({row["loss"] for row in metrics[0]}) == STEPS


def test_final_weights_are_those_of_the_uninterrupted_run(whole: Run, killed: Run) -> None:
    from safetensors.torch import load_file

    there, here = (
        load_file(run.folder / "checkpoint/model.safetensors") for run in (whole, killed)
    )
    assert there.keys() == here.keys()
    for name, tensor in there.items():
        torch.testing.assert_close(here[name], tensor, atol=2e-3, rtol=0, msg=name)


def test_damaged_images_are_dead_and_training_goes_on(whole: Run) -> None:
    order, name = EpochSampler(NUM_ROWS, seed=0), whole.settings.run.name
    dead = [group for row in whole.rows("ledger.jsonl") for group in row["dead"]]
    assert dead == [f"{name}-e0-r{order.at(position)[1]}" for position in DAMAGED]


def test_every_position_is_used_dead_or_replaced(whole: Run) -> None:
    order, name = EpochSampler(NUM_ROWS, seed=0), whole.settings.run.name
    ledger = whole.rows("ledger.jsonl")
    ended = [
        group
        for row in ledger
        for part in ("group_ids", "dead", "no_spread")
        for group in row[part]
    ]
    expected = [f"{name}-e0-r{order.at(position)[1]}" for position in range(len(ended))]
    assert sorted(ended) == sorted(expected)
    for step in range(STEPS):
        for group in (group for rank in whole.rollouts(step) for group in rank):
            assert len({reward["total"] for reward in group["rewards"]}) > 1


def test_the_index_has_the_ledgers_groups_and_is_that_of_the_uninterrupted_run(
    whole: Run, killed: Run
) -> None:
    parts = {"group_ids": "trained", "dead": "dead", "no_spread": "zero_variance"}
    index = RolloutIndex(killed.folder)
    lines = index.page(limit=999).lines
    found = sorted((line.step, line.group_id, line.state) for line in lines)
    assert found == sorted(
        (row["step"], group, state)
        for row in whole.rows("ledger.jsonl")
        for part, state in parts.items()
        for group in row[part]
    )
    for line in lines:
        if line.state == "dead":
            assert "damaged" in line.reason
        else:
            record = index.read_record(line)
            assert record.rollout.group_id == line.group_id
            assert record.reference is not None
            totals = {reward.total for reward in record.rewards}
            assert (len(totals) == 1) == (line.state == "zero_variance")


def test_events_say_what_became_of_the_killed_run(killed: Run) -> None:
    events = read_events(killed.folder)
    steps: dict[str, list[int]] = {}
    for event in events:
        steps.setdefault(event.kind, []).append(event.step)
    assert {1, 3, 5} <= {*steps["checkpoint"]}
    assert len(steps["stopped"]) == 1
    assert steps["rolled_back"] == [4]
    assert steps["finished"] == [STEPS - 1]
    assert {*range(STEPS)} <= {*steps["published"]}
    assert "failed" not in steps
    assert events[0].kind == "started"


def test_idle_shares_and_queue_depth_are_reported(whole: Run) -> None:
    for row in whole.rows("metrics.jsonl"):
        assert 0 < row["trainer_idle_fraction"] < 1
        assert 0 <= row["sampler_idle_fraction"] < 1
        assert row["groups_sampling"] == row["groups_scoring"] == row["groups_ready"] == 0


def test_folders_that_are_left(killed: Run) -> None:
    """Two checkpoints, two versions of the weights, no drafts."""
    kept = sorted(path.name for path in (killed.folder / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000006"]
    versions = sorted(path.stem.partition("-")[2] for path in (killed.folder / "weights").iterdir())
    assert versions == ["5", "6"]
