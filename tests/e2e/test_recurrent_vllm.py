"""Qwen3.5 in vLLM: three of its four layers carry a state. The trainer's are in `tests/unit`."""

from pathlib import Path

import pytest
import torch

from rollout_service.vllm.engine import VllmEngine
from scene_data.toy.tiny_model import make_tiny_model
from services.errors import SettingsError
from services.schemas.weights import AdapterConfig, Version
from services.settings import Settings
from tests.e2e import versions
from tests.e2e.engine_server import engine_server, settings_of
from tests.e2e.oracle import Oracle, largest_gap, picture
from tests.updaters import Content
from trainer.policy.adapter import add_adapter
from trainer.policy.export import exported_parameters

TOLERANCE = 0.1
"""Both round to bfloat16 in other places, and states carry it on; in float32 vLLM's kernel for CPUs
does not run. Of the tiny model as it is made, transformers alone in bfloat16 is off by 0.006."""


def tiny_settings(folder: Path, dtype: str) -> Settings:
    make_tiny_model(folder / "tiny", family="qwen3_5")
    return settings_of(folder / "tiny", folder).changed(model={"dtype": dtype})


async def test_a_version_reaches_recurrent_layers(tmp_path: Path) -> None:
    settings, image = tiny_settings(tmp_path, "bfloat16"), picture(1)
    base, other = Oracle(settings), Oracle(settings, noise=0.05)
    async with engine_server(settings) as server:
        for new, old in ((base, other), (other, base), (base, other)):
            if new is other or server.updater.serving.policy_version:
                await server.update(new, vision_trained=True)
            answer = await server.sample(image, n=4, max_tokens=48)
            assert largest_gap(new, image, answer) < TOLERANCE
            assert largest_gap(old, image, answer) > 10 * TOLERANCE


async def test_an_adapter_reaches_recurrent_layers(tmp_path: Path) -> None:
    """On their projections alone, so that nothing else makes the difference."""
    make_tiny_model(tmp_path / "tiny", family="qwen3_5")
    settings = settings_of(tmp_path / "tiny", tmp_path, transport="lora").changed(
        model={"dtype": "bfloat16"},
        lora={"rank": 4, "target_modules": r".*language_model.*\.(in_proj_qkv|in_proj_z|out_proj)"},
    )
    image, base, policy = picture(1), Oracle(settings), Oracle(settings)
    torch.manual_seed(0)
    add_adapter(policy.model, settings)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    named = exported_parameters(policy.model, adapter_only=True, trainable_only=True)
    adapter = {name: parameter.detach() for name, parameter in named}
    config = AdapterConfig(rank=4, alpha=settings.lora.alpha)
    async with engine_server(settings) as server:
        manifest = versions.manifest_of(adapter, 1, adapter=config)
        content = versions.adapter_file(tmp_path, adapter)
        await server.updater.upload(Version(1, 1), Content(content))
        await server.updater.stage(versions.stage_of(manifest, "lora"))
        await server.updater.commit(versions.commit_of(manifest))
        answer = await server.sample(image, n=4, max_tokens=48)
    assert largest_gap(policy, image, answer) < TOLERANCE
    assert largest_gap(base, image, answer) > 5 * TOLERANCE


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPUs compute them in float32 too")
def test_float32_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model\.dtype = 'float32': on a CPU.*'bfloat16'"):
        VllmEngine(tiny_settings(tmp_path, "float32"))
