"""Logits of a bfloat16 model: the sampler's against the trainer's, in float32 and rounded."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rollout_service.vllm_engine import VllmEngine, engine_args
from scene_data.tiny_model import make_tiny_model
from services.errors import SettingsError
from services.schemas.rollouts import RolloutResponse
from services.settings import Settings
from tests.e2e.engine_server import engine_server, settings_of
from tests.e2e.oracle import SUPPRESSED, Oracle, picture
from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs


def bfloat16_settings(model: Path, folder: Path) -> Settings:
    tree = settings_of(model, folder).model_dump(mode="json")
    tree["model"] |= {"dtype": "bfloat16"}
    return Settings.model_validate(tree)


def gaps(oracle: Oracle, image: bytes, answer: RolloutResponse, *, float32: bool) -> torch.Tensor:
    """Of all tokens: rollout_logprobs to what the trainer's head makes of bfloat16 states."""
    found = []
    for completion in answer.completions:
        ids = torch.tensor([completion.token_ids])
        inputs = dict(oracle.inputs(image))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (
            inputs["input_ids"] == oracle.model.config.image_token_id
        ).int()
        with torch.no_grad():
            hidden = oracle.model.model(**inputs).last_hidden_state[0, -ids.numel() - 1 : -1]
            logprobs, _ = token_logprobs(
                hidden,
                oracle.model.lm_head.weight,
                ids[0],
                SamplingDistribution(suppressed=tuple(SUPPRESSED)),
                chunk=64,
                float32_logits=float32,
            )
        found.append(torch.tensor(completion.rollout_logprobs) - logprobs)
    return torch.cat(found).abs()


def loud(model: Path, folder: Path) -> Path:
    """The model with logits of a trained one, near 23: the toy's are near 8."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (norm,) = (name for name in tensors if name.endswith("norm.weight") and "layers" not in name)
    tensors[norm] *= 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


async def test_float32_logits_close_the_gap_that_rounding_makes(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = bfloat16_settings(loud(tiny_model, tmp_path / "loud"), tmp_path)
    images = [picture(i) for i in range(4)]
    async with engine_server(settings) as server:
        assert await server.probe("probe_head_dtypes") == ["torch.float32"]
        answers = [await server.sample(image, n=8, max_tokens=48) for image in images]
    oracle = Oracle(settings)
    oracle.model.bfloat16()
    float32, rounded = (
        torch.cat(
            [gaps(oracle, *both, float32=wanted) for both in zip(images, answers, strict=True)]
        )
        for wanted in (True, False)
    )
    assert float32.mean() < 0.9 * rounded.mean()


def test_a_language_model_that_is_made_by_its_own_configuration_makes_float32_logits(
    tmp_path: Path,
) -> None:
    """As vLLM makes that of Qwen3-VL: what stands above the text configuration is lost."""
    make_tiny_model(tmp_path / "tiny", family="qwen3_vl")
    config = engine_args(bfloat16_settings(tmp_path / "tiny", tmp_path)).create_engine_config()
    whole = config.model_config
    language = config.with_hf_config(whole.hf_config.get_text_config(), ["Qwen3ForCausalLM"])
    assert whole.dtype == torch.bfloat16
    assert whole.head_dtype == language.model_config.head_dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs have both runners")
def test_the_second_model_runner_is_refused_on_a_cpu(tiny_model: Path, tmp_path: Path) -> None:
    settings = settings_of(tiny_model, tmp_path, model_runner="v2")
    with pytest.raises(SettingsError, match=r"model_runner = 'v2' is for GPUs: on a CPU set 'v1'"):
        VllmEngine(settings)
