"""`sgg-rl weights`: what it writes is what a server takes."""

from pathlib import Path

from safetensors.numpy import save_file
from typer.testing import CliRunner

from cli.main import app
from services.schemas.weights import CommitRequest, StageRequest, Version, manifest_checksum
from tests.shm_versions import tensors_of
from tests.updaters import Content, ToyEngine, updater_of


async def test_a_described_file_is_staged_and_served(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors_of(3), file)
    command = ["weights", "manifest", str(file), "--policy-version", "3", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    stage = StageRequest.model_validate_json((tmp_path / "stage.json").read_text())
    assert stage.checksum == manifest_checksum(stage.manifest)
    assert stage.manifest.algorithm == "blake3"
    updater = updater_of(ToyEngine(tokens_per_s=1e6, max_model_len=64), tmp_path.name, tmp_path)
    await updater.upload(Version(1, 3), Content(file.read_bytes()))
    await updater.stage(stage)
    await updater.commit(CommitRequest.model_validate_json((tmp_path / "commit.json").read_text()))
    assert updater.serving == stage.version
    updater.close()
