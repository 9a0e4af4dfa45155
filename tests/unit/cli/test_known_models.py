"""Every command that would load a model says the same of an unknown one, and of its boxes."""

import json
import socket
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from launcher.inference import run_inference
from planning.run_checks import run_checks
from services.errors import SettingsError
from services.settings import load_settings

COMMANDS = {
    "train": ["train"],
    "dry run": ["train", "--dry-run"],
    "sft": ["sft"],
    "serve rollout": ["serve", "rollout"],
    "run": ["run"],
    "demo": ["demo"],
    "infer": ["infer", "data.parquet", "-o", "{folder}/out"],
    "predict": ["predict", "{folder}/a.jpg", "-o", "{folder}/out", "--model", "{folder}/m"],
    "infer with a server of its own": ["infer", "d", "-o", "{folder}/out", "--model", "{folder}/m"],
    "slurm submit": ["slurm", "submit"],
    "slurm submit --job sft": ["slurm", "submit", "--job", "sft"],
}


def config(folder: Path, model_type: str, more: str = "") -> Path:
    (folder / "m").mkdir()
    Image.new("RGB", (56, 56)).save(folder / "a.jpg")
    found = {"model_type": model_type, "text_config": {}}
    (folder / "m" / "config.json").write_text(json.dumps(found))
    file = folder / "run.toml"
    file.write_text(
        f'[run]\nroot = "{folder}"\n[model]\npath = "{folder}/m"\n{more}'
        '[data]\ntrain = "t.parquet"\n[redis]\nurl = "redis://127.0.0.1:1/0"\n'
        '[deploy]\nkind = "single"\nsite = "a100"\ngpus_per_node = 2\n'
        'site_values = {partition = "gpu", venv = "/opt/venv"}\n'
    )
    return file


def said(command: str, folder: Path, file: Path) -> str:
    arguments = [word.format(folder=folder) for word in COMMANDS[command]]
    with pytest.raises(SettingsError) as error:
        CliRunner().invoke(app, [*arguments, "--config", str(file)], catch_exceptions=False)
    return error.value.message


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_model_is_refused(command: str, tmp_path: Path) -> None:
    message = said(command, tmp_path, config(tmp_path, "llava"))
    assert f"model.path: {tmp_path}/m is of model_type 'llava'. This trains and serves" in message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_contradicting_box_space_is_refused(command: str, tmp_path: Path) -> None:
    file = config(tmp_path, "qwen2_5_vl", 'box_space = "relative_1000"\n')
    message = said(command, tmp_path, file)
    assert f"model.box_space = 'relative_1000': {tmp_path}/m is a qwen2_5_vl" in message


def test_doctor_says_it_too(tmp_path: Path) -> None:
    settings = load_settings(config(tmp_path, "llava"), [], {})
    (missing,) = [f for f in run_checks(settings) if "model_type" in f.detail]
    assert missing.state == "missing"
    assert f"{tmp_path}/m is of model_type 'llava'" in missing.detail


def test_servers_elsewhere_need_the_box_space_alone(tmp_path: Path) -> None:
    """Nothing is known here of their model: the settings have to say it."""
    told = load_settings([], ["model.path=/else/where", "data.train=t"], {})
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        url = f"http://127.0.0.1:{somebody.getsockname()[1]}"
        with pytest.raises(SettingsError, match="there is no /else/where"):
            run_inference(told, "nothing.parquet", tmp_path / "out", servers=[url])
