"""The whole loop on an adapter: two ranks share the frozen policy, vLLM is sent the adapter.

With several updates a step, of which the sampler gets the last one's weights.
"""

from dataclasses import replace
from pathlib import Path

import httpx
from safetensors import safe_open

from services.settings import Settings, dump_settings
from tests.e2e.conftest import TrainingServices, server_here
from tests.e2e.training_run import LOGPROB_TOLERANCE, lay_out, logprob_gaps
from tests.processes import sgg_process

STEPS = 2


def test_an_adapter_is_trained_sent_and_saved(
    training_services: TrainingServices, tiny_model: Path, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    adapter = {"weights": {"transport": "lora"}}
    with server_here(tiny_model, redis_url, tmp_path / "server", **adapter) as server:
        services = replace(training_services, server=server)
        run = lay_out(
            services,
            tmp_path,
            "lora",
            algorithm={"num_mini_batches": 2, "num_iterations": 2},
            zero_stage=3,
            num_steps=STEPS,
            num_ranks=2,
        )
        tree = run.settings.model_dump(mode="json", exclude_none=True) | {"lora": {"rank": 4}}
        run.config.write_text(dump_settings(Settings.model_validate(tree)))
        with sgg_process(run.log, "train", "--config", str(run.config)) as process:
            assert process.wait(300) == 0, run.log.read_text()[-4000:]
        policy = httpx.get(f"{server.url}/v1/policy", trust_env=False).json()
    assert policy["policy_version"] == STEPS
    rows = run.rows("metrics.jsonl")
    assert [row["policy_version"] for row in rows] == [0, 1]
    for row in rows:
        assert row["num_skipped_updates"] == 0
        assert list(row["clip_fraction_by_iteration"]) == ["1", "2"]
    gaps = logprob_gaps(run, range(STEPS), stale=False)
    assert len(gaps) > 100
    assert max(gaps) < LOGPROB_TOLERANCE
    with safe_open(run.folder / "checkpoint/adapter_model.safetensors", "pt") as saved:
        names = list(saved.keys())
        assert any(saved.get_tensor(name).abs().max() > 0 for name in names if "lora_B" in name)
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
