"""Which models are known, and which box space they have; no torch, no hub."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from cli.commands.prepare.data import make_tiny
from scene_data.toy.tiny_model import Family
from services.errors import SettingsError, UnavailableError
from services.models.families import FAMILIES, PAGE, PUBLISHED, model_family, with_box_space
from services.settings import Settings

LIST = f"This trains and serves {', '.join(FAMILIES)} ({PAGE})"


BOM = '\ufeff{"model_type": "qwen2_vl"}'
"""transformers does not read it"""


def folder(path: Path, config: Any) -> str:
    path.mkdir(exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    return str(path)


def settings(path: str, **model: Any) -> Settings:
    return Settings.model_validate({"model": {"path": path, **model}, "data": {"train": "t"}})


@pytest.mark.parametrize(
    ("model_type", "box_space", "patch_factor"),
    [
        ("qwen2_vl", "relative_1000", 28),
        ("qwen2_5_vl", "pixels", 28),
        ("qwen3_vl", "relative_1000", 32),
        ("qwen3_vl_moe", "relative_1000", 32),
        ("qwen3_5", "relative_1000", 32),
    ],
)
def test_known_families(tmp_path: Path, model_type: str, box_space: str, patch_factor: int) -> None:
    """Also as older checkpoints have it: the language model's fields at the top."""
    text = {"layer_types": ["full_attention"] * 2, "norm_topk_prob": True}
    own = {"model_type": model_type, "text_config": text}
    older = {
        "model_type": model_type,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "norm_topk_prob": True,
    }
    for path in (folder(tmp_path / "own", own), folder(tmp_path / "older", older)):
        family = model_family(path)
        assert (family.box_space, family.patch_factor) == (box_space, patch_factor)
        assert with_box_space(settings(path)).model.box_space == box_space


def test_every_family_has_a_tiny_model() -> None:
    assert set(get_args(Family)) == set(FAMILIES)
    offered = get_type_hints(make_tiny)["family"]
    assert offered == Family, "`sgg-rl model make-tiny` spells them out, to start fast"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llava"}, "of model_type 'llava'. "),
        ({"model_type": "internvl_chat"}, "of model_type 'internvl_chat'. "),
        (
            {"model_type": "qwen3_vl_moe", "text_config": {"norm_topk_prob": False}},
            "a qwen3_vl_moe without norm_topk_prob = true, by which transformers and vLLM differ. ",
        ),
        (
            {
                "model_type": "qwen3_5",
                "tie_word_embeddings": True,
                "text_config": {"tie_word_embeddings": False},
            },
            "a qwen3_5 whose text_config has another tie_word_embeddings, which vLLM reads and not "
            "this one. ",
        ),
        ({"model_type": "glm4v"}, "of model_type 'glm4v'. "),
        ({"model_type": "glm4v_moe"}, "of model_type 'glm4v_moe'. "),
        ({"model_type": "qwen2_5_omni"}, "of model_type 'qwen2_5_omni'. "),
        ({"model_type": "qwen2", "hidden_size": 8}, "of model_type 'qwen2'. "),
        ({"model_type": ["qwen2_vl"]}, "of model_type ['qwen2_vl']. "),
        ({"architectures": ["Other"]}, "of model_type None. "),
        (
            {
                "model_type": "qwen3_vl",
                "text_config": {"layer_types": ["linear_attention", "full_attention"]},
            },
            "a qwen3_vl with linear_attention. ",
        ),
        (
            {"model_type": "qwen2_5_vl", "text_config": {"use_sliding_window": True}},
            "a qwen2_5_vl with sliding_attention. ",
        ),
    ],
)
def test_other_models_are_refused_with_the_list(tmp_path: Path, config: Any, said: str) -> None:
    path = folder(tmp_path / "m", config)
    with pytest.raises(SettingsError) as error:
        with_box_space(settings(path))
    assert error.value.message == f"model.path: {path} is {said}{LIST}"


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "7", '{"text_config": 3}', '{"text_config": null}', "[" * 99_999, BOM]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, config: str) -> None:
    path = folder(tmp_path / "m", config)
    with pytest.raises(SettingsError, match=r"model.path: .*/m/config.json (is not|must hold)"):
        model_family(path)


def test_a_folder_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(SettingsError, match=rf"{path} has no config.json.*{PAGE}"):
            model_family(str(path))


@pytest.mark.parametrize("path", ["nowhere", "./a/b", "/a/b", "runs/a/model"])
def test_nothing_there(path: str) -> None:
    with pytest.raises(SettingsError, match=rf"model.path: there is no {path} \(seen from /"):
        model_family(path)


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published ones are known without it, cached ones by their copy, others not at all."""
    assert {model_family(name).model_type for name in PUBLISHED} == {
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
    }
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    folder(snapshot, {"model_type": "qwen3_vl"})
    (tmp_path / "models--me--mine" / "refs").mkdir()
    (tmp_path / "models--me--mine" / "refs" / "main").write_text("abc")
    program = (
        "from services.models.families import model_family\n"
        "print(model_family('me/mine').model_type)\n"
        "try: model_family('me/other')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "import sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    cached, other, imported = done.stdout.splitlines()
    assert cached == "qwen3_vl"
    assert other.startswith(f"{UnavailableError.__name__} model.path: there is no folder me/other")
    assert imported == "False False"


def test_a_contradiction_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model_type": "qwen2_5_vl"})
    with pytest.raises(SettingsError) as error:
        with_box_space(settings(path, box_space="relative_1000"))
    assert error.value.message == (
        f"model.box_space = 'relative_1000': {path} is a qwen2_5_vl, whose boxes are 'pixels'. Set "
        "'auto'; or, if this one was trained to write relative_1000, model.box_space_override = "
        f"true ({PAGE})"
    )
    meant = settings(path, box_space="relative_1000", box_space_override=True)
    assert with_box_space(meant) == meant
    spelt_out = settings(path, box_space="pixels")
    assert with_box_space(settings(path)) == with_box_space(spelt_out) == spelt_out
