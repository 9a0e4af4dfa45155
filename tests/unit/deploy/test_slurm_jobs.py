"""What a job's script is made of, and what is refused before it is queued."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deploy.slurm.commands import is_active
from deploy.slurm.layout import Job
from deploy.slurm.render import render
from deploy.slurm.site import DEPLOY_FOLDER, load_site, shipped_sites
from deploy.slurm.status import JobStatus, _exit_code, status_lines
from deploy.slurm.submit import JobRecord, job_settings, read_record
from deploy.slurm.submit import submit as submit_job
from scene_data.toy.scenes import make_toy
from services.errors import ConflictError, InvalidInputError, NotFoundError, SettingsError
from services.run_folder import LoggedError, RunFolder, TrainerSign
from services.settings import Settings, dump_settings, load_settings
from services.settings.deploy import DeploySettings

A100 = [
    "model.path=Qwen/Qwen2-VL-2B-Instruct",
    "data.train=t",
    "data.heldout=h.parquet",
    "deploy.site=a100",
    'deploy.site_values={partition = "gpu", venv = "/opt/venv"}',
]
APART = [
    *A100,
    "trainer.num_ranks=4",
    "cluster.num_rollout_servers=8",
    "weights.transport=disk",
]
HOMOGENEOUS = [*APART, "deploy.kind=homogeneous"]
SINGLE = [*A100, "deploy.kind=single", "cluster.num_rollout_servers=3"]
COLOCATED = [
    *A100,
    "deploy.kind=colocated",
    "trainer.num_ranks=4",
    "cluster.num_rollout_servers=4",
    "weights.transport=ipc",
    "rollout.gpu_memory_utilization=0.35",
]
JOBS: dict[str, tuple[Job, list[str]]] = {
    "heterogeneous": ("train", APART),
    "homogeneous": ("train", HOMOGENEOUS),
    "single": ("train", SINGLE),
    "colocated": ("train", COLOCATED),
    "colocated pairs": (
        "train",
        [*COLOCATED, "cluster.num_rollout_servers=2", "rollout.tensor_parallel_size=2"],
    ),
    "sft": ("sft", [*A100, "trainer.num_ranks=4"]),
    "infer": ("infer", [*A100, "cluster.num_rollout_servers=8"]),
}


def settings(*overrides: str) -> Settings:
    return load_settings([], overrides, environment={})


def script(name: str, *more: str) -> str:
    job, overrides = JOBS[name]
    return render(job_settings(settings(*overrides, *more), job), job)


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


@pytest.mark.parametrize("name", ["single", "sft"])
def test_a_job_goes_on_with_other_data_where_that_is_asked_for(name: str) -> None:
    job, overrides = JOBS[name]
    text = render(job_settings(settings(*overrides), job), job, allow_changes=True)
    said = "export SGG_JOB_ALLOW_CHANGES=1\n"
    assert said in text
    assert text.replace(said, "") == script(name)


@pytest.mark.parametrize("name", JOBS)
def test_every_script_is_bash_that_a_linter_passes(name: str, tmp_path: Path) -> None:
    file = tmp_path / "job.sh"
    file.write_text(script(name))
    subprocess.run(["bash", "-n", str(file)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here (Debian: apt-get install shellcheck)")
    # SC1091: it cannot follow the site's virtual environment.
    linter = ["shellcheck", "--exclude=SC1091", str(file), str(DEPLOY_FOLDER / "task.sh")]
    found = subprocess.run(linter, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_rehearsal_comes_before_the_job_and_takes_one_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "sbatch.log"
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    # Only its answers are made up: an id, one more for each job.
    count = f'case "$*" in *parsable*) wc -l <{log};; esac'
    sbatch.write_text(f'#!/bin/bash\necho "$@" >>{log}\n{count}\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=":")
    run = settings(*APART, f"run.root={tmp_path}/runs", *_readable(tmp_path))
    submit_job(run, "train", after="7", rehearse=True)
    slurm = (tmp_path / "runs/run/slurm").absolute()
    assert log.read_text().splitlines() == [
        f"--test-only {slurm}/job.sh",
        f"--test-only {slurm}/rehearse.sh",
        f"--parsable {slurm}/rehearse.sh",
        f"--parsable --dependency=afterok:7:3 --kill-on-invalid-dep=yes {slurm}/job.sh",
    ]
    script = slurm / "rehearse.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "--nodes=1 --ntasks-per-node=1 --cpus-per-task=64" in options(script.read_text())
    assert f"sgg-rl rehearse --config {slurm.parent}/config.toml" in script.read_text()
    with pytest.raises(SettingsError, match="--rehearse is for training"):
        submit_job(run, "infer", rehearse=True)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_can_be_queued_again_and_is_told_before_its_end(name: str) -> None:
    wanted = {"--requeue", "--open-mode=append", "--signal=B:USR1@300", "--partition=gpu"}
    assert wanted <= {*options(script(name))}


def test_components_of_a_heterogeneous_job() -> None:
    found = options(script("heterogeneous"))
    first, second = found[: found.index("hetjob")], found[found.index("hetjob") :]
    assert "--nodes=1 --ntasks-per-node=4 --cpus-per-task=16" in first
    assert "--nodes=2 --ntasks-per-node=4 --cpus-per-task=16" in second
    assert "--gpus-per-node=4" in first
    assert "--gpus-per-node=4" in second
    assert "--no-kill" not in found


def test_a_server_of_several_gpus_is_one_task_with_all_of_them() -> None:
    size = ["cluster.num_rollout_servers=4", "rollout.tensor_parallel_size=2"]
    for name, step in {
        "heterogeneous": "--nodes=2",  # as with eight servers
        "homogeneous": "--nodes=2",
        "infer": "--nodes=2",
        "colocated pairs": "--nodes=1",
    }.items():
        text = script(name, *([] if "pairs" in name else size))
        assert "--ntasks-per-node=4 --cpus-per-task=16" in "\n".join(options(text))
        assert {"--gpus-per-node=4"} == {line for line in options(text) if "gpus" in line}
        rollout = next(part for part in text.split("\n\n") if "step rollout" in part)
        servers = 2 if "pairs" in name else 4
        assert f"{step} \\\n    --ntasks={servers} --ntasks-per-node=2 " in rollout
        assert "--cpus-per-task=32 --mem=0 --gpus-per-task=2 " in rollout
    assert " SGG_JOB_SERVER_GPUS=2\n" in script("colocated pairs")
    assert "i < 2; i++" in script("infer", *size), "and two ports on each node"


def test_only_a_homogeneous_job_outlives_a_node() -> None:
    assert "--no-kill" in options(script("homogeneous"))
    assert "--no-kill" in options(script("infer"))
    assert not {"--no-kill"} & {*options(script("single")), *options(script("colocated"))}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_outlives_nodes_is_watched_from_the_others(name: str) -> None:
    assert ('task.sh" watch' in script(name)) == ("--no-kill" in options(script(name)))


def test_there_is_no_watch_on_a_single_node() -> None:
    assert "watch" not in script("infer", "cluster.num_rollout_servers=1")


def test_options_of_the_user_come_after_those_of_the_site() -> None:
    found = options(script("single", 'deploy.sbatch=["--partition=long", "--qos=high"]'))
    assert found.index("--partition=gpu") < found.index("--partition=long")
    assert "--qos=high" in found


def test_both_see_the_same_gpu_only_where_they_share_it() -> None:
    for name, shared in {"colocated": True, "single": False}.items():
        steps = [part for part in script(name).split("\n\n") if "--ntasks-per-node" in part]
        trainer = next(part for part in steps if "run_main trainer" in part)
        assert ("--overlap" in trainer) == shared


def test_a_rank_waits_for_the_server_on_its_gpu_only_where_there_is_one() -> None:
    for name in JOBS:
        found = "export SGG_JOB_SERVER_WAIT_S=600 " in script(name)
        assert found == ("colocated" in name)


def test_a_training_job_says_first_where_its_console_is_and_how_it_is_reached() -> None:
    text = script("single", "monitor.url=http://127.0.0.1:8411", "run.root=some runs")
    told = [line for line in text.splitlines() if re.match(r'say "[^"]*[a-z]', line)]
    assert told[0].startswith('say "console: http://$head:8411/runs/run, with the token in" ')
    assert told[0].endswith("some runs/run/secrets/data_token'")
    assert "ssh -N -L 8411:$head:8411 $(id -un)@${SLURM_SUBMIT_HOST:-LOGIN_NODE}" in told[1]
    assert "ssh -N" not in script("single", "monitor.console=false")


def test_names_are_quoted() -> None:
    text = script("infer", "data.heldout=my data.parquet", "run.root=some runs")
    assert "-- infer 'my data.parquet' \"${servers[@]}\"" in text
    assert "some runs/run/inference'" in text


def test_a_site_without_gpu_options() -> None:
    site = 'deploy.site_values={account = "a", venv = "/opt/venv"}'
    one = ["deploy.gpus_per_node=1", "trainer.num_ranks=1", "cluster.num_rollout_servers=2"]
    found = script("heterogeneous", "deploy.site=tacc-vista", site, *one)
    assert not [line for line in options(found) if "gpu" in line or "--mem" in line]
    assert "--gres" not in found
    assert "--gpus" not in found


def test_an_inference_is_a_run_of_its_own() -> None:
    found = job_settings(settings(*JOBS["infer"][1]), "infer")
    assert found.run.folder == Path("runs/run/inference")


@pytest.mark.parametrize("name", shipped_sites())
def test_each_shipped_site_says_what_it_needs(name: str) -> None:
    tree = tomllib.loads((DEPLOY_FOLDER / "sites" / f"{name}.toml").read_text())
    with pytest.raises(SettingsError, match=f"{next(iter(tree['values']))} = ") as error:
        load_site(DeploySettings(site=name))
    assert "\n" not in error.value.message
    values = dict.fromkeys(tree["values"], "VALUE")
    site = load_site(DeploySettings(site=name, site_values=values))
    texts = [*site.sbatch, *site.srun, *site.setup]
    assert not [text for text in texts if "<" in text]
    assert sum("VALUE" in text for text in texts) == len(values)


def test_variables_of_slingshot_are_set_on_alps_alone() -> None:
    for name in shipped_sites():
        text = (DEPLOY_FOLDER / "sites" / f"{name}.toml").read_text()
        assert ("FI_CXI" in text) == (name == "cscs-alps")


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (APART, "deploy.gpus_per_node=3", "trainer.num_ranks is 4, and nodes have room for 3 each"),
        (APART, "cluster.num_rollout_servers=9", "set it to 8 or 12"),
        (APART, "weights.transport=shm", "weights.transport = 'shm'"),
        (APART, "weights.transport=ipc", "weights.transport = 'ipc'"),
        (APART, "deploy.gpus_per_node=8", "deploy.gpus_per_node is 8"),
        (APART, "deploy.site=", "deploy.site is not set"),
        (APART, "deploy.site=nowhere", "there is no nowhere: choose one of"),
        (APART, 'deploy.site_values={venv = "/v", partition = "p", x = "y"}', "has x, which"),
        (SINGLE, "cluster.num_rollout_servers=4", "need 5 GPUs of one node, which gives 4"),
        (APART, "rollout.tensor_parallel_size=8", "is 8, and nodes have 4 GPUs each: set it"),
        (SINGLE, "rollout.tensor_parallel_size=2", "(3 of rollout.tensor_parallel_size = 2 GPUs)"),
        (COLOCATED, "rollout.tensor_parallel_size=2", "is 4 and cluster.num_rollout_servers 4 of"),
        (COLOCATED, "trainer.num_ranks=8", "so set both to the number of GPUs"),
        (COLOCATED, "rollout.gpu_memory_utilization=0.85", "rollout.gpu_memory_utilization"),
        (COLOCATED, "weights.transport=nccl", "weights.transport = 'nccl'"),
    ],
)
def test_what_does_not_go_together_is_refused(base: list[str], change: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        render(settings(*base, change), "train")
    assert message in error.value.message
    assert "\n" not in error.value.message


def test_no_slurm_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match="there is no sbatch here: run this on a login node"):
        submit_job(settings(*APART, f"run.root={tmp_path}", *_readable(tmp_path)), "train")


@pytest.mark.parametrize("there", [{}, {"config.toml": "old", "slurm/job.sh": "old", "note": "x"}])
def test_a_job_that_is_refused_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: dict[str, str]
) -> None:
    overrides = [*APART, f"run.root={tmp_path}/some/runs", *_readable(tmp_path)]
    folder = tmp_path / "some/runs/run"
    for name, text in there.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match="there is no sbatch here"):
        submit_job(settings(*overrides), "train")
    left = {path: path.read_text() for path in (tmp_path / "some").rglob("*") if path.is_file()}
    assert left == {folder / name: text for name, text in there.items()}
    assert (tmp_path / "some").exists() == bool(there)


def _readable(folder: Path) -> list[str]:
    make_toy(folder / "toy", num_train=2, num_heldout=2)
    splits = {"train": "train", "heldout": "heldout"}
    data = [f"data.{field}={folder}/toy/{split}.parquet" for field, split in splits.items()]
    return ["model.path=assets/toy-start", *data]


def test_what_the_job_could_not_read_is_said_before_it_is_queued(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.train: t is not a dataset"):
        submit_job(settings(*APART, f"run.root={tmp_path}"), "train")
    assert not list(tmp_path.rglob("job.sh"))


def test_a_model_that_an_earlier_job_makes_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    overrides = [f"run.root={tmp_path}", *_readable(tmp_path), "model.path=runs/sft/model"]
    with pytest.raises(SettingsError, match=r"model\.path: there is no runs/sft/model"):
        submit_job(settings(*APART, *overrides), "train")
    with pytest.raises(NotFoundError, match="there is no sbatch here"):  # all else is looked at
        submit_job(settings(*APART, *overrides), "train", after="7")


def test_checkpoints_are_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-4").mkdir(parents=True)
    with pytest.raises(ConflictError, match="add --resume"):
        submit_job(settings(*APART, f"run.root={tmp_path}"), "train")


def test_a_person_reads_the_status() -> None:
    record = JobRecord(job="train", job_id="7", kind="single", submitted=0.0)
    found = JobStatus(
        run="demo",
        record=record,
        state="RUNNING",
        reason=None,
        nodes="g[0-1]",
        runtime="00:10:00",
        requeues=2,
        exit_code=None,
        step=12,
        num_steps=80,
        last_step_s=3.2,
        reward=2.1337,
        loss=None,
        left_s=330.4,
        num_servers=3,
        trainer=TrainerSign(4, "train", 12, done=False, failed=None, ago_s=2.0),
        last_error=LoggedError("rollout-1.log", 130.0, "rollout vllm.engine: out of memory"),
        logs=Path("runs/demo/logs"),
    )
    once = found.model_copy(update={"requeues": 1, "num_servers": 1})
    assert status_lines(once)[1] == "queued again: 1 time"
    assert "1 rollout server," in status_lines(once)[2]
    assert status_lines(found) == [
        "run demo: train job 7, single: RUNNING on g[0-1] for 00:10:00",
        "queued again: 2 times",
        "step 12 of 80, 3 s ago: reward 2.134, 3 rollout servers, 0:05:30 left",
        "trainer: 4 ranks, 'train' of step 12, last sign 2 s ago",
        "last error, 2 min ago, rollout-1.log: rollout vllm.engine: out of memory",
        "logs: runs/demo/logs (job.log first)",
    ]


def test_a_status_by_folder_is_of_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(
        dump_settings(settings(*A100, "run.name=mine", "run.root=runs"))
    )
    monkeypatch.chdir(run)
    for words, folder in (["."], run), (["../mine", "--job", "infer"], run / "inference"):
        done = CliRunner().invoke(app, ["slurm", "status", *words])
        assert isinstance(done.exception, NotFoundError)
        assert f"no job of the run in {folder}:" in done.exception.message


def test_a_damaged_record_of_a_job_is_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.slurm.mkdir()
    assert read_record(folder) is None
    (folder.slurm / "job.json").write_text('{"job": "tra')
    with pytest.raises(InvalidInputError, match=r"job.json names no job .* remove it where no job"):
        read_record(folder)


def test_an_exit_code_that_is_being_written_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.slurm.mkdir()
    found = []
    for text in (None, "", "75\n"):
        if text is not None:
            (folder.slurm / "exit_code").write_text(text)
        found.append(_exit_code(folder))
    assert found == [None, None, 75]


def test_a_job_that_is_held_after_a_requeue_is_active() -> None:
    assert is_active({"JobState": "PENDING"})
    assert not is_active({"JobState": "COMPLETED"})
    assert not is_active(None)
