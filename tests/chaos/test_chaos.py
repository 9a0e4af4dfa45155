"""The short form of `make chaos`: a run under some faults keeps every promise."""

import itertools
from pathlib import Path
from typing import get_args

from tests.chaos.faults import OF_VLLM, Fault, Kind, schedule
from tests.chaos.run import under_faults


def test_a_run_under_faults_keeps_every_promise(tmp_path: Path) -> None:
    outcome = under_faults(tmp_path, itertools.islice(schedule(1), 12))
    assert outcome.broken == []
    assert len(outcome.seen) == 12


def test_without_lag_the_weights_are_those_of_the_undisturbed_run(tmp_path: Path) -> None:
    faults = [
        Fault("kill", "rollout-1"),
        Fault("kill", "trainer"),
        Fault("empty", "redis"),
        Fault("cut", "trainer to redis", 1.0),
        Fault("kill a rank", "1"),
        Fault("kill", "redis"),
    ]
    runs = {}
    for name, some in (("whole", []), ("disturbed", faults)):
        folder = tmp_path / name
        folder.mkdir()
        runs[name] = under_faults(folder, some, lag=0, num_steps=12, min_steps=2)
        assert runs[name].broken == []
        assert runs[name].num_steps == 12
    assert len(runs["disturbed"].seen) >= 3
    assert runs["whole"].weights == runs["disturbed"].weights != b""


def test_five_hundred_faults_are_of_every_kind() -> None:
    faults = [*itertools.islice(schedule(1, own_host=True), 500), *OF_VLLM]
    assert {fault.kind for fault in faults} == set(get_args(Kind))
