"""DeepSpeed's JSON: what the settings generate, and the user's own over it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from services.errors import SettingsError
from services.settings import Settings, dump_settings, load_settings
from trainer.policy.deepspeed.config import deepspeed_config, sharding_config


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


FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2}
LEFT_OPEN = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 100,
    "wall_clock_breakdown": False,
}
ADAMW = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
NO_OFFLOAD = {"device": "none", "pin_memory": True}
ZERO_2 = {
    "fp16": FP16,
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": ADAMW},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": NO_OFFLOAD,
        "allgather_bucket_size": 2e8,
        "reduce_bucket_size": "auto",
    },
    **LEFT_OPEN,
}
ZERO_3 = {
    "fp16": FP16,
    "bf16": {"enabled": "auto"},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": NO_OFFLOAD,
        "offload_param": NO_OFFLOAD,
        "zero_hpz_partition_size": 8,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_max_live_parameters": 1e9,
    },
    **LEFT_OPEN,
}
"""In the form of R1-SGG's local_scripts/zero2.json and zero3_hpz.json."""


@pytest.mark.parametrize(("tree", "stage"), [(ZERO_2, 2), (ZERO_3, 3)])
def test_hugging_faces_files_are_taken_as_they_are(
    tmp_path: Path, tree: dict[str, Any], stage: int
) -> None:
    wanted = own(tmp_path, tree)
    assert wanted.deepspeed.zero_stage == stage, "the file decides where nothing else does"
    assert not wanted.deepspeed.offload_optimizer
    config = deepspeed_config(wanted)
    parsed = DeepSpeedConfig(config)
    assert parsed.zero_optimization_stage == stage
    assert parsed.steps_per_print == 100
    assert config["bf16"] == {"enabled": True}
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["zero_optimization"]["reduce_bucket_size"] == 200_000_000
    assert config["optimizer"]["params"]["lr"] == 3e-6
    assert not {"fp16", "scheduler", "train_batch_size"} & set(config)


def test_offload_and_stage_are_the_files_where_nothing_else_says_them(tmp_path: Path) -> None:
    cpu = {"device": "cpu", "pin_memory": "auto"}
    zero = {"stage": 3, "offload_optimizer": cpu, "offload_param": {"device": "auto"}}
    found = own(tmp_path, {"zero_optimization": zero}).deepspeed
    assert (found.zero_stage, found.offload_optimizer, found.offload_parameters) == (3, True, False)
    (tmp_path / "run.toml").write_text(dump_settings(own(tmp_path, {"zero_optimization": zero})))
    again = load_settings(tmp_path / "run.toml", [], {})
    assert again.deepspeed == found, "also once it has been written down"


@pytest.mark.parametrize(
    "tree",
    [
        {"bf16": {"enabled": True}, "fp16": {"enabled": False}},
        {"gradient_clipping": 0.5, "gradient_accumulation_steps": 1},
        {"optimizer": {"params": {"lr": 3e-6}}, "zero_optimization": {"stage": 2}},
    ],
)
def test_saying_the_same_is_no_contradiction(tmp_path: Path, tree: dict[str, Any]) -> None:
    assert deepspeed_config(own(tmp_path, tree))["optimizer"]["params"]["lr"] == 3e-6


def test_all_that_is_the_trainers_is_refused_at_once_with_its_settings(tmp_path: Path) -> None:
    tree = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": False},
        "fp16": {"enabled": True},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
        "optimizer": {"params": {"lr": 1e-4}},
        "zero_optimization": {"stage": 3},
    }
    wanted = own(tmp_path, tree)
    wanted = settings(config_file=wanted.deepspeed.config_file, zero_stage=2)
    with pytest.raises(SettingsError, match="does not go with this run") as caught:
        deepspeed_config(wanted)
    said = caught.value.message.splitlines()[1:]
    remedies = {line.split()[0]: line.rpartition("set ")[2] for line in said}
    assert remedies == {
        "train_micro_batch_size_per_gpu": "trainer.tokens_per_micro_batch",
        "gradient_accumulation_steps": "trainer.tokens_per_micro_batch",
        "bf16": "model.dtype",
        "fp16": "model.dtype",
        "scheduler": "trainer.lr_schedule and trainer.warmup_steps",
        "optimizer.params.lr": "trainer.learning_rate",
        "zero_optimization.stage": "deepspeed.zero_stage",
    }


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"zero_optimization": {"stage": "3"}}, r"stage is '3': a number from 0 to 3"),
        ({"zero_optimization": {"stage": True}}, r"stage is True: a number from 0 to 3"),
        ({"zero_optimization": {"stage": 4}}, r"stage is 4: a number from 0 to 3"),
        ({"zero_optimization": True}, r"zero_optimization is true: an object is wanted"),
        ({"zero_optimization": None}, r"zero_optimization is null: an object is wanted"),
        ({"optimizer": {"params": None}}, r"optimizer.params is null: an object is wanted"),
        ({"optimizer": "Adam"}, r'optimizer is "Adam": an object is wanted'),
        ({"optimizer": {"type": "Adamm"}}, r"'Adamm'\): neither DeepSpeed nor torch.optim has it"),
        ({"optimizer": {"params": {"beta": 1}}}, r"AdamW says: .* argument 'beta'"),
        ({"optimizer": {"type": "SGD", "params": {"momentum": -1}}}, "SGD says: .*momentum.* -1"),
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation: .* is zero_optimization meant"),
        ({"Bf16": {"enabled": True}}, "Bf16: .* is bf16 meant"),
        ({"bfloat16": {"enabled": False}}, r"bfloat16 \(False\): .*set model.dtype"),
        ({"zero_optimization": {"stge": 3}}, r"zero_optimization\.stge \(3\): DeepSpeed says"),
        ({"zero_optimization": {"overlap_comm": "x"}}, r"overlap_comm \('x'\): DeepSpeed says"),
    ],
)
def test_what_deepspeed_does_not_take_is_refused(tmp_path: Path, tree: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        deepspeed_config(own(tmp_path, tree))


@pytest.mark.parametrize("name", ["adamw", "AdamW"])
def test_case_does_not_make_another_optimizer(tmp_path: Path, name: str) -> None:
    tree = {"optimizer": {"type": name, "params": {"eps": 1e-7}}}
    params = deepspeed_config(own(tmp_path, tree))["optimizer"]["params"]
    assert (params["torch_adam"], params["betas"], params["eps"]) == (True, [0.8, 0.9], 1e-7)


def test_keys_that_deepspeed_knows_are_no_misspellings(tmp_path: Path) -> None:
    tree = {
        "gradient_predivide_factor": 2,
        "prescale_gradients": True,
        "zero_allow_untested_optimizer": True,
        "communication_data_type": "fp32",
        "activation_checkpointing": {},
        "comms_logger": {"enabled": False},
    }
    assert tree.items() <= deepspeed_config(own(tmp_path, tree)).items()


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    config = deepspeed_config(
        own(tmp_path, '\ufeff{"zero_optimization": {"sub_group_size": 1000}}')
    )
    assert config["zero_optimization"]["sub_group_size"] == 1000


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), ("[1]", "JSON object")])
def test_a_malformed_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=f"config_file.*{said}"):
        deepspeed_config(own(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"deepspeed.config_file.*No such file"):
        deepspeed_config(settings(config_file=tmp_path / "none.json"))
