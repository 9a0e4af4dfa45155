from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from scene_data.tiny_model import make_tiny_model
from scene_data.toy import make_toy
from services.settings import DataSettings, ModelSettings, RunSettings, Settings
from services.trainer_settings import SftSettings
from trainer.sft import _Progress, run_sft


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_tiny_model(tmp_path / "model")
    make_toy(tmp_path / "toy", num_train=16, num_heldout=1)
    return Settings(
        run=RunSettings(name="sft", root=tmp_path / "runs"),
        model=ModelSettings(path=str(tmp_path / "model"), dtype="float32"),
        data=DataSettings(train=str(tmp_path / "toy/train.parquet"), template="toy"),
        sft=SftSettings(
            num_steps=6,
            batch_size=4,
            micro_batch_size=2,
            learning_rate=1e-3,
            warmup_steps=0,
            checkpoint_every=3,
        ),
    )


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).state_dict())


def test_sft_trains_every_part_and_writes_a_loadable_folder(settings: Settings) -> None:
    folder = run_sft(settings)
    before, after = _weights(Path(settings.model.path)), _weights(folder)
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    assert AutoProcessor.from_pretrained(folder).image_processor.size["shortest_edge"] == 3136
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _weights(run_sft(settings))
    other = settings.model_copy(update={"run": RunSettings(name="b", root=settings.run.root)})

    def interrupt(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Progress, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sft(other)
    names = [p.name for p in (other.run.folder / "checkpoints").glob("checkpoint-*")]
    assert names == ["checkpoint-3"]
    resumed = _weights(run_sft(other, resume=True))
    assert whole.keys() == resumed.keys()
    assert all(torch.allclose(whole[key], resumed[key], atol=1e-6) for key in whole)
