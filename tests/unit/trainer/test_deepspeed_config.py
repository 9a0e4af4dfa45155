"""DeepSpeed's JSON: what the settings generate, and the user's own over it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from services.errors import SettingsError
from services.settings import Settings
from trainer.policy.deepspeed_config import deepspeed_config, sharding_config


def settings(model: dict[str, Any] | None = None, **deepspeed: Any) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": "m", **(model or {})},
            "data": {"train": "t"},
            "deepspeed": deepspeed,
            "trainer": {"max_grad_norm": 0.5, "learning_rate": 3e-6, "betas": [0.8, 0.9]},
        }
    )


def own(folder: Path, tree: Any) -> Settings:
    file = folder / "ds.json"
    file.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return settings(config_file=file)


def test_the_settings_are_in_it() -> None:
    config = deepspeed_config(settings(zero_stage=2, offload_optimizer=True))
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_param" not in config["zero_optimization"]
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": True}
    params = config["optimizer"]["params"]
    assert (params["lr"], params["betas"]) == (3e-6, [0.8, 0.9])


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_gpu_gets_pinned_memory_and_overlap(
    on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    wanted = settings(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    config = deepspeed_config(wanted)
    zero = config["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": on_gpu}
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": on_gpu}
    assert zero["overlap_comm"] is on_gpu
    params = config["optimizer"]["params"]
    assert params["torch_adam"] is params["fused"] is True, "nothing is compiled"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_takes_it(stage: int) -> None:
    parsed = DeepSpeedConfig(deepspeed_config(settings(zero_stage=stage)))
    assert parsed.zero_optimization_stage == stage
    assert parsed.gradient_accumulation_steps == 1


def test_a_model_that_is_not_trained_is_sharded_without_optimizer() -> None:
    config = sharding_config(settings(zero_stage=3, offload_optimizer=True))
    assert "optimizer" not in config
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["zero_optimization"]["stage"] == 3


def test_the_users_own_wins_key_by_key(tmp_path: Path) -> None:
    tree = {
        "zero_optimization": {"reduce_bucket_size": 7, "stage": "auto"},
        "optimizer": {"params": {"eps": 1e-7}},
        "train_batch_size": "auto",
        "wall_clock_breakdown": True,
    }
    config = deepspeed_config(own(tmp_path, tree))
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["stage"] == 2
    assert config["optimizer"]["params"]["eps"] == 1e-7
    assert config["optimizer"]["params"]["lr"] == 3e-6
    assert config["wall_clock_breakdown"] is True
    assert "train_batch_size" not in config


def test_another_optimizer_gets_the_rate_and_its_own_parameters(tmp_path: Path) -> None:
    config = deepspeed_config(own(tmp_path, {"optimizer": {"type": "Lion", "params": {"a": 1}}}))
    assert config["optimizer"] == {"type": "Lion", "params": {"a": 1, "lr": 3e-6}}


def test_deepspeeds_own_adam_gets_no_parameter_of_torchs(tmp_path: Path) -> None:
    config = deepspeed_config(own(tmp_path, {"optimizer": {"params": {"torch_adam": False}}}))
    assert config["optimizer"]["params"] == {
        "lr": 3e-6,
        "betas": [0.8, 0.9],
        "weight_decay": 0.0,
        "torch_adam": False,
    }


@pytest.mark.parametrize(
    ("tree", "named", "remedy"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch", "tokens_per_micro_batch"),
        ({"gradient_accumulation_steps": 1}, "gradient_accum", "tokens_per_micro_batch"),
        ({"bf16": {"enabled": True}}, "bf16", "model.dtype"),
        ({"optimizer": {"params": {"lr": 1e-4}}}, "optimizer.params.lr", "learning_rate"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "zero_stage"),
    ],
)
def test_what_is_the_trainers_is_refused_with_its_setting(
    tmp_path: Path, tree: dict[str, Any], named: str, remedy: str
) -> None:
    with pytest.raises(SettingsError, match=rf"{named}.*{remedy}"):
        deepspeed_config(own(tmp_path, tree))


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[1]", "JSON object")])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"config_file.*{said}"):
        deepspeed_config(own(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"deepspeed.config_file.*No such file"):
        deepspeed_config(settings(config_file=tmp_path / "none.json"))
