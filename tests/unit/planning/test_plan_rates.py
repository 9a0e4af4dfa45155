"""`sgg-rl plan`: shipped clusters, rates of a run, what saturates, what a person sees."""

import io
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from cli.commands.prepare.plan import plan as plan_command
from launcher.views.terminal import SafeConsole
from planning.shapes import model_shape
from planning.simulation.cluster import SHIPPED, load_cluster
from planning.simulation.compare import make_plan
from planning.simulation.derive import derived
from planning.simulation.limits import limits
from planning.simulation.measure import measured
from planning.simulation.rates import staged_s
from planning.simulation.splits import Planner, best
from planning.simulation.view import plan_json, plan_view
from services.errors import InvalidInputError, SettingsError
from services.settings import Settings, load_settings

RUN = Path("configs/r1-sgg/vg150-closed-2b-zero.toml")


def settings(**trainer: int) -> Settings:
    small = {"groups_per_step": 8, "group_size": 4, "num_ranks": 1} | trainer
    return load_settings(RUN, [f"trainer.{name}={value}" for name, value in small.items()])


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_a_shipped_cluster_is_usable_and_claims_no_measurement(file: Path) -> None:
    cluster = load_cluster(file.stem)
    given = [*cluster.rates.values()]
    for section in (cluster.hardware, cluster.workload):
        given += [getattr(section, name) for name in type(section).model_fields]
    assert {one.basis for one in given} <= {"assumption", "datasheet"}
    table = derived(settings(), cluster, model_shape("Qwen/Qwen2-VL-2B-Instruct"))
    assert "measured" not in {one.basis for one in table.values()}


def test_a_cluster_that_is_not_there_or_not_right_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"that ships \(24gbx32, 80gbx1, a100x16"):
        load_cluster("a100")
    file = tmp_path / "mine.toml"
    text = (SHIPPED / "a100x16.toml").read_text()
    file.write_text(text.replace("count = 16", "count = 0"))
    with pytest.raises(SettingsError, match=r"mine.toml is not usable: gpus.count: "):
        load_cluster(str(file))
    file.write_text("[gpus")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_cluster(str(file))


@pytest.mark.parametrize("transport", ["shm", "disk", "http"])
def test_a_delta_is_sent_in_less_time(transport: str) -> None:
    """A share of the bytes goes over the network or the file system."""
    cluster, model = load_cluster("gh200x1024"), model_shape("Qwen/Qwen2-VL-2B-Instruct")
    runs = (
        settings().changed(weights={"transport": transport, "encoding": encoding})
        for encoding in ("whole", "delta")
    )
    whole, delta = (derived(run, cluster, model) for run in runs)
    assert all(delta[name] == whole[name] for name in ("export_s", "commit_s"))
    assert delta["write_s"].value <= whole["write_s"].value
    of_whole, of_delta = (
        staged_s(
            *(table[f"stage_{name}s"].value for name in ("", "more_", "round_")), num_servers=512
        )
        for table in (whole, delta)
    )
    assert of_delta < of_whole / 2 or transport == "shm"
    assert delta["stage_s"].value < whole["stage_s"].value
    assert "delta" in delta["stage_s"].source


@pytest.mark.parametrize(
    ("transport", "encoding", "together"),
    [
        ("shm", "whole", True),
        ("disk", "whole", True),
        ("disk", "delta", False),
        ("http", "whole", False),
        ("nccl", "whole", False),
    ],
)
def test_ranks_write_a_version_together_where_the_trainer_does(
    transport: str, encoding: str, together: bool
) -> None:
    run = settings().changed(weights={"transport": transport, "encoding": encoding})
    cluster, model = load_cluster("a100x16"), model_shape(run.model.path)
    table = derived(run, cluster, model)
    assert (table["write_s"].value > table["export_s"].value) == (transport != "nccl")
    planner = Planner(settings=run, table=table, model=model, gpu_memory_gib=80)
    shapes = planner._shapes(16, 8)
    assert len(shapes) > 1
    for shape in shapes:
        assert shape.num_writers == (shape.num_trainers if together else 1)


def test_a_server_of_several_gpus_takes_so_many_of_the_split_and_is_faster() -> None:
    cluster, model = load_cluster("a100x16"), model_shape("Qwen/Qwen2-VL-2B-Instruct")
    ones, fours = (settings().changed(rollout={"tensor_parallel_size": size}) for size in (1, 4))
    plan = make_plan(fours, cluster)
    for split in plan.splits:
        assert split.shape.num_servers == (16 - split.shape.num_trainers) // 4
    assert (
        f"to sample, {plan.best.shape.num_servers} servers of 4:" in plan_json(plan)["conclusion"]
    )
    rates = [derived(one, cluster, model) for one in (ones, fours)]
    prompt_s = [table["prompt_s"].value for table in rates]
    assert prompt_s[0] / prompt_s[1] == pytest.approx(4 * 0.85**2)
    assert rates[0]["stage_more_s"] == rates[1]["stage_more_s"]
    over_a_node = fours.changed(rollout={"tensor_parallel_size": 8})
    with pytest.raises(SettingsError, match="is 8, and a node has 4 GPUs: a server is on one node"):
        make_plan(over_a_node, cluster)
    too_large = settings().changed(model={"path": "Qwen/Qwen2.5-VL-72B-Instruct"})
    with pytest.raises(SettingsError, match=r"beside 136.7 GiB of weights .*tensor_parallel_size"):
        make_plan(too_large, cluster)


def test_one_gpu_is_shared_over_ipc_only() -> None:
    with pytest.raises(SettingsError, match=r"weights.transport = 'ipc'"):
        make_plan(settings(), load_cluster("80gbx1"))
    shared = load_settings(
        RUN,
        [
            "weights.transport=ipc",
            "rollout.gpu_memory_utilization=0.3",
            "trainer.groups_per_step=8",
        ],
    )
    found = make_plan(shared, load_cluster("80gbx1"))
    assert [split.shape.colocated for split in found.splits] == [True]


def test_the_text_fits_100_columns_and_the_json_has_all_sources() -> None:
    found = make_plan(settings(), load_cluster("a100x16"), gpus=(8, 32))
    console = SafeConsole(width=100, record=True, file=io.StringIO())
    console.print(plan_view(found))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("<- best") == 1
    assert "are not measured on these GPUs" in text
    tree = plan_json(found)
    assert [one["num_gpus"] for one in tree["scaling"]] == [8, 8, 32, 32]
    assert [one["shape"]["groups_per_step"] for one in tree["scaling"]] == [8, 4, 8, 16]
    assert sum(split["best"] for split in tree["splits"]) == 1
    assert all(rate["source"] for rate in tree["rates"].values())
    assert plan_json(found) == plan_json(
        make_plan(settings(), load_cluster("a100x16"), gpus=(8, 32))
    )


def test_a_trainer_that_does_not_fit_is_not_the_best() -> None:
    run, cluster = settings(groups_per_step=16), load_cluster("a100x16")
    shape = model_shape(run.model.path)
    table = derived(run, cluster, shape)
    planner = Planner(settings=run, table=table, model=shape, gpu_memory_gib=1e9)
    splits = planner.splits(16, 16)
    sizes = sorted(split.trainer_gib for split in splits)
    tight = replace(planner, gpu_memory_gib=(sizes[0] + sizes[1]) / 2).splits(16, 16)
    assert sum(split.fits for split in tight) == 1
    assert best(tight).trainer_gib == sizes[0]


def test_the_part_that_is_fullest_comes_first() -> None:
    run, cluster = settings(), load_cluster("a100x16")
    shape = model_shape(run.model.path)
    table = derived(run, cluster, shape)
    slow = table | {"redis_s": table["redis_s"].model_copy(update={"value": 10.0})}
    planner = Planner(settings=run, table=slow, model=shape, gpu_memory_gib=80)
    split = planner.splits(4, 8)[-1]
    found = limits(split, slow, run, 1e9)
    assert [limit.share for limit in found] == sorted((x.share for x in found), reverse=True)
    assert found[0].name == "Redis"
    assert found[0].share == pytest.approx(1.0, abs=0.05), "the simulated loop waits for it"
    assert split.step_s == pytest.approx(80, rel=0.05)


def run_folder(folder: Path, num_steps: int) -> Path:
    """A run with two ranks and a server of 100 tokens/s that is busy half of the time."""
    (folder / "rollouts").mkdir(parents=True)
    group = {
        "server_id": "one",
        "sampling_s": 2.0,
        "prompt_token_ids": [1] * 10,
        "completions": [{"token_ids": [1] * 60}, {"token_ids": [1] * 40}],
    }
    row = {
        "num_tokens": 200,
        "num_groups": 2,
        "policy_lag_max": 1,
        "preparation_s": 0.5,
        "sampler_idle_fraction": 0.5,
        "phases_s": {"wait": 1.0, "prepare": 0.0, "train": 2.5, "publish": 0.5},
    }
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(num_steps):
            file.write(json.dumps({"step": step, **row}) + "\n")
            for rank in range(2):
                rollouts = folder / f"rollouts/step-{step:06d}.rank{rank}.jsonl"
                rollouts.write_text(json.dumps({"rollout": group}) + "\n")
    return folder


def test_rates_of_a_run_are_what_it_did(tmp_path: Path) -> None:
    run, cluster = settings(), load_cluster("a100x16")
    table = derived(run, cluster, model_shape(run.model.path))
    found, lengths = measured(run_folder(tmp_path / "run", 10), table)
    pace = found["tokens_per_s"]
    # Two groups for 2 s each in 2 busy seconds of a step; the shorter answer is there for 4/3 s.
    half = found["half_sequences"].value
    assert pace.value * (10 / 3) / (10 / 3 + half) == pytest.approx(100)
    assert (pace.basis, found["half_sequences"].basis) == ("measured", "derived")
    assert pace.source == f"{tmp_path / 'run'}, 8 steps"
    fixed_s, slowed = found["fixed_s"].value, found["doubling_efficiency"].value
    assert fixed_s + found["token_s"].value * 110 / slowed == pytest.approx(2.5)
    assert (found["export_s"].value, found["write_s"].value) == (0.5, 0.0)
    assert lengths(Random(0)) == (60, 40)


def test_more_updates_take_as_many_passes_and_steps() -> None:
    cluster, shape = load_cluster("a100x16"), model_shape("Qwen/Qwen2-VL-2B-Instruct")
    once = derived(settings(), cluster, shape)
    algorithm = {"num_iterations": 2, "num_mini_batches": 4}
    found = derived(settings().changed(algorithm=algorithm), cluster, shape)
    assert found["token_s"].value == pytest.approx(once["token_s"].value * (2 * 8 + 1.5) / 8)
    assert found["fixed_s"].value == pytest.approx(once["fixed_s"].value * 8)


def test_a_run_with_too_little_is_refused(tmp_path: Path) -> None:
    run, cluster = settings(), load_cluster("a100x16")
    table = derived(run, cluster, model_shape(run.model.path))
    with pytest.raises(InvalidInputError, match=r"there is no .*metrics.jsonl"):
        measured(tmp_path, table)
    with pytest.raises(InvalidInputError, match="has too few steps: measure a run of at least 5"):
        measured(run_folder(tmp_path / "short", 4), table)
    sft = tmp_path / "sft"
    sft.mkdir()
    rows = [json.dumps({"step": step, "loss": 1.0}) for step in range(9)]
    (sft / "metrics.jsonl").write_text("\n".join(rows))
    with pytest.raises(
        InvalidInputError, match="lacks num_groups, num_tokens, phases_s: is it a GRPO run's"
    ):
        measured(sft, table)


@pytest.mark.parametrize("text", ["1", "64,x", "-3"])
def test_numbers_of_gpus_are_checked(text: str) -> None:
    with pytest.raises(SettingsError, match="write numbers from 2 on"):
        plan_command("a100x16", gpus=text)
