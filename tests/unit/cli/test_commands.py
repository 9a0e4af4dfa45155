"""The command line as a person meets it: exit codes, and messages without tracebacks."""

import subprocess
import sys
from pathlib import Path

import pytest

from scene_data.toy.scenes import make_toy

ROOT = Path(__file__).parents[3]


def sgg(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['sgg-rl', '--help']\n"
        "from cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'vllm', 'deepspeed', 'transformers', 'datasets', 'numpy', 'fastapi'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_a_server_with_the_fake_engine_starts_without_torch() -> None:
    code = (
        "import sys, planning.preflight.folders, planning.preflight.gpus\n"
        "import rollout_service.http.app\n"
        "loaded = {'torch', 'vllm', 'transformers', 'pandas'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--config", "nowhere.toml"], 2, "no settings file at nowhere.toml"),
        (
            ["train", "-c", "demo", "--set", "trainer.num_stepz=1"],
            2,
            "[trainer] has no 'num_stepz'",
        ),
        (
            ["train", "-c", "demo", "--set", "trainer.max_policy_lag=-1"],
            2,
            "trainer.max_policy_lag",
        ),
        (["nonsense"], 2, "No such command"),
        (
            ["dead", "list", "-c", "demo", "--set", "redis.url=redis://127.0.0.1:1/0"],
            1,
            "does not answer",
        ),
        (["data", "inspect", "nowhere"], 1, "nowhere"),
    ],
)
def test_failure_is_one_message_and_an_exit_code(
    arguments: list[str], code: int, message: str
) -> None:
    done = sgg(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_resolved_settings(tmp_path: Path) -> None:
    make_toy(tmp_path, num_train=8, num_heldout=2)
    words = ["--set", "trainer.num_steps=17"]
    for field, split in (("train", "train"), ("heldout", "heldout")):
        words += ["--set", f"data.{field}={tmp_path / split}.parquet"]
    done = sgg("train", "--config", "demo", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    assert "num_steps = 17" in done.stdout
    assert "temperature = 1.0" in done.stdout


@pytest.mark.parametrize(
    ("cluster", "message"), [("zzz", "there is no "), ("80gbx1", "one GPU is shared")]
)
def test_a_plan_is_refused_before_anything_heavy_is_imported(cluster: str, message: str) -> None:
    code = (
        f"import sys; sys.argv = ['sgg-rl', 'plan', '--config', 'demo', '--cluster', '{cluster}']\n"
        "from cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "loaded = {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert message in done.stderr
