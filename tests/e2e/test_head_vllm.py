"""Logits of a bfloat16 model: the sampler's against the trainer's, in float32 and rounded."""

from pathlib import Path

import pytest
import torch

from services.schemas.rollouts import RolloutResponse
from services.settings import Settings
from tests.e2e.engine_server import engine_server, settings_of
from tests.e2e.oracle import SUPPRESSED, Oracle, picture
from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs


def bfloat16_settings(model: Path, folder: Path, head_dtype: str) -> Settings:
    tree = settings_of(model, folder).model_dump(mode="json")
    tree["model"] |= {"dtype": "bfloat16", "head_dtype": head_dtype}
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


@pytest.mark.parametrize("head_dtype", ["float32", "model"])
async def test_print(tiny_model: Path, tmp_path: Path, head_dtype: str) -> None:
    settings = bfloat16_settings(tiny_model, tmp_path, head_dtype)
    images = [picture(i) for i in range(6)]
    async with engine_server(settings) as server:
        dtypes = await server.probe("probe_head_dtypes")
        answers = [await server.sample(image, n=8, max_tokens=48) for image in images]
        print("runner", server.engine.model_runner)
    oracle = Oracle(settings)
    oracle.model.bfloat16()
    for float32 in (True, False):
        all_ = torch.cat([gaps(oracle, i, a, float32=float32) for i, a in zip(images, answers)])
        print(
            "GAPS sampler",
            head_dtype,
            dtypes,
            "trainer float32" if float32 else "trainer model",
            all_.mean(),
            all_.max(),
            all_.square().mean(),
        )
