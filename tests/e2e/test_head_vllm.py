"""Logits of a bfloat16 model in vLLM: float32. The trainer's are in `tests/unit/trainer`."""

import uuid
from pathlib import Path

import pytest
import torch

from rollout_service.engine import GroupRequest
from rollout_service.vllm.engine import VllmEngine, engine_args
from scene_data.toy.tiny_model import make_tiny_model
from services.errors import SettingsError
from services.schemas.common import Sampling
from services.settings import Settings
from tests.e2e.engine_server import EngineServer, engine_server, settings_of
from tests.e2e.oracle import SUPPRESSED, messages, picture

TEMPERATURE = 2.0


def bfloat16_settings(model: Path, folder: Path) -> Settings:
    tree = settings_of(model, folder).model_dump(mode="json")
    tree["model"] |= {"dtype": "bfloat16"}
    return Settings.model_validate(tree)


async def logits_of_one_state(server: EngineServer, image: bytes) -> torch.Tensor:
    """Those of a group's first tokens, which are drawn from one state; but for a constant."""
    sampling = Sampling(
        n=64, seed=1, max_tokens=1, temperature=TEMPERATURE, suppress_token_ids=SUPPRESSED
    )
    request = GroupRequest(
        messages=messages(), images=[image], sampling=sampling, request_id=uuid.uuid4().hex
    )
    result = await server.engine.sample(request)
    logprobs = [completion.rollout_logprobs[0] for completion in result.completions]
    return TEMPERATURE * torch.tensor(logprobs, dtype=torch.float64)


def off_the_grid(logits: torch.Tensor) -> float:
    """How far the highest are from one another, beside multiples of bfloat16's step from 1 to 2.

    For bfloat16 logits over 1, as the toy's highest are, it is 0 but for a softmax in float32.
    """
    steps = 128 * (logits[logits > logits.max() - 4] - logits.max())
    return float((steps - steps.round()).abs().max())


async def test_logits_of_a_bfloat16_model_are_not_rounded(tiny_model: Path, tmp_path: Path) -> None:
    async with engine_server(bfloat16_settings(tiny_model, tmp_path)) as server:
        assert await server.probe("probe_head_dtypes") == ["torch.float32"]
        logits = await logits_of_one_state(server, picture(1))
    assert off_the_grid(logits) > 0.1


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
