"""The policy as it is loaded: which parts are frozen, and what is no policy."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaConfig

from scene_data.toy.tiny_model import Family, make_tiny_model
from services.errors import SettingsError
from services.models.families import as_published, save_published
from services.settings import Settings
from trainer.policy.adapter import add_adapter
from trainer.policy.export import exported, exported_parameters
from trainer.policy.model import load_model

PARTS = ("vision_tower", "projector", "language_model")


@pytest.fixture(scope="module", params=get_args(Family))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny_model(folder, family=request.param)
    return folder


def settings(path: Path, **sections: dict[str, Any]) -> Settings:
    base = {"model": {"path": str(path), "dtype": "float32"}, "data": {"train": "t"}}
    return Settings.model_validate(base | sections)


def part_of(name: str) -> str:
    if "visual." not in name:
        return "language_model"
    return "projector" if "merger" in name else "vision_tower"


@pytest.mark.parametrize("frozen", [("vision_tower",), ("projector",), ("language_model",), ()])
def test_each_flag_freezes_its_part(model_folder: Path, frozen: tuple[str, ...]) -> None:
    trainer = {f"freeze_{part}": True for part in frozen}
    model = load_model(settings(model_folder, trainer=trainer))
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == set(PARTS) - set(frozen)
    sent = exported_parameters(model, adapter_only=False, trainable_only=True)
    assert {part_of(name) for name, _ in sent} == trained


def test_every_merger_of_qwen3_belongs_to_the_projector(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, family="qwen3_vl")
    model = load_model(settings(tmp_path, trainer={"freeze_projector": True}))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert any("deepstack_merger_list" in name for name in frozen)


def test_an_adapter_is_all_that_is_trained_and_starts_as_nothing(model_folder: Path) -> None:
    wanted = settings(model_folder, lora={"rank": 4}, weights={"transport": "lora"})
    model = load_model(wanted)
    add_adapter(model, wanted)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name and "visual" not in name for name in trained)
    tensors = dict(
        exported(
            exported_parameters(model, adapter_only=True, trainable_only=True),
            gather=lambda _: torch.no_grad(),
            bucket_bytes=1,
            dtype=torch.bfloat16,
            wanted=True,
        )
    )
    assert len(tensors) == len(trained)
    assert all(name.startswith("base_model.model.model.language_model.") for name in tensors)
    assert not any(t.any() for name, t in tensors.items() if ".lora_B." in name)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_an_adapter_of_the_vision_tower_is_refused(model_folder: Path) -> None:
    """In Qwen2.5-VL, `gate_proj` alone would take in both towers."""
    wanted = settings(
        model_folder, lora={"rank": 4, "target_modules": r".*(visual.*(qkv|proj)|q_proj)"}
    )
    with pytest.raises(SettingsError, match=r"lora.target_modules takes in .*visual"):
        add_adapter(load_model(wanted), wanted)


def test_target_modules_that_are_nowhere_are_refused(model_folder: Path) -> None:
    wanted = settings(model_folder, lora={"rank": 4, "target_modules": ["nowhere"]})
    with pytest.raises(SettingsError, match=r"lora.target_modules"):
        add_adapter(load_model(wanted), wanted)


def test_what_is_saved_is_in_the_published_layout(model_folder: Path, tmp_path: Path) -> None:
    """As the folder that it was loaded from: same names, same shapes, same numbers."""
    model = load_model(settings(model_folder))
    save_published(model, tmp_path, model.state_dict())
    before, after = (load_file(f / "model.safetensors") for f in (model_folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    if model.config.model_type.startswith("qwen3"):  # the others' have other names there
        for name, parameter in model.named_parameters():
            assert torch.equal(as_published(name, parameter), before[name])


def test_a_copy_does_not_follow_the_weights(model_folder: Path) -> None:
    model = load_model(settings(model_folder))
    parameters = exported_parameters(model, adapter_only=False, trainable_only=True)
    copies = exported(
        parameters,
        gather=lambda _: torch.no_grad(),
        bucket_bytes=1,
        dtype=torch.float32,
        wanted=True,
    )
    name, copy = next(copies)
    before = copy.clone()
    with torch.no_grad():
        dict(model.named_parameters())[name].add_(1)
    assert torch.equal(copy, before)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model.path: there is no .*nowhere"):
        load_model(settings(tmp_path / "nowhere"))


def test_a_model_that_lacks_tensors_is_refused(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("norm.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match=r"lack 1 tensors .*norm\.weight\): copy or download"):
        load_model(settings(tmp_path))


def test_a_config_of_another_size_is_refused(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] *= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=r"other shapes than its config\.json says"):
        load_model(settings(tmp_path))


def test_another_family_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": 64, **small, **heads},
        vision_config={"model_type": "clip_vision_model", "image_size": 28, **small, **heads},
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(
        SettingsError, match=r"model_type 'llava'\. This trains and serves qwen2_vl"
    ):
        load_model(settings(tmp_path))
