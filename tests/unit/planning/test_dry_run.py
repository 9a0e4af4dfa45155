import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from planning.dry_run import dry_run
from planning.estimate import estimate_memory, estimate_sft_memory
from planning.shapes import KNOWN, model_shape
from planning.tensor_parallel import check_tensor_parallel
from rollout_service.vllm.gpu_memory import server_memory
from services.errors import SettingsError
from services.host.gpu import GIB
from services.models.families import with_box_space
from services.settings import Settings, load_settings

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(CONFIGS.glob("r1-sgg/*-*.toml"))
HARDWARE = sorted(CONFIGS.glob("hardware/*.toml"))
LARGE, FOR_LARGE = ("32b", "72b"), CONFIGS / "hardware/80gbx32.toml"
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3.5-4B": 4_539_265_536,
}


@pytest.mark.parametrize("name", KNOWN)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    assert model_shape(name).num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_that_of_the_paper_and_fits_its_hardware(recipe: Path) -> None:
    data, vocabulary, size, start = recipe.stem.split("-")
    for files in ([recipe], *([recipe, hardware] for hardware in HARDWARE)):
        settings = load_settings(files, [], {})
        trainer = settings.trainer
        assert (trainer.group_size, trainer.groups_per_step, trainer.learning_rate) == (8, 32, 6e-7)
        assert (settings.algorithm.beta, settings.sampling.temperature) == (0, 1)
        assert (settings.rollout.max_model_len, settings.sampling.max_tokens) == (3072, 1024)
        assert settings.model.max_pixels == 512 * 28 * 28
        assert (trainer.num_epochs, trainer.checkpoint_every) == (1, 100)
        assert trainer.max_grad_norm == (0.3 if start == "sft" else 1.0)
        assert settings.data.thinking == (start != "sft")
        assert data in settings.data.train
        assert settings.data.vocabulary == (data if vocabulary == "closed" else None)
        assert_fits(settings, f"Qwen/Qwen2-VL-{size.upper()}-Instruct")
    if start == "grpo":
        sft = load_settings(recipe.with_name(recipe.name.replace("grpo", "sft")), [], {})
        assert settings.model.path == str(sft.run.folder / "model")


def assert_fits(settings: Settings, published: str) -> None:
    """Trainer and server, by the estimates."""
    model = {"path": published}
    shape, memory = model_shape(published), settings.cluster.gpu_memory_gib
    assert memory is not None
    assert sum(estimate_memory(settings, shape).values()) < memory
    server_memory(settings, int(memory * GIB), 2 * shape.num_parameters)
    check_tensor_parallel(settings.changed(model=model))


FAMILY_RECIPES = sorted(CONFIGS.glob("qwen*/*.toml"))


@pytest.mark.parametrize("recipe", FAMILY_RECIPES, ids=lambda path: path.stem)
def test_recipe_of_another_family_is_the_paper_s_but_for_its_model_and_fits(recipe: Path) -> None:
    found = re.fullmatch(r"(\w+)-closed-(.+)-(\w+)-(\w+)", recipe.stem)
    assert found is not None
    data, family, size, start = found.groups()
    assert recipe.parent.name == family
    hardware = [FOR_LARGE] if size in LARGE else []
    files = [CONFIGS / f"r1-sgg/{data}-closed-2b-{start}.toml", *hardware]
    theirs = load_settings(files, [], {})
    published = f"Qwen/{family.replace('qwen', 'Qwen').replace('vl', 'VL')}-{size.upper()}"
    published += "" if family == "qwen3.5" else "-Instruct"
    path = published if start != "grpo" else f"runs/{recipe.stem.replace('grpo', 'sft')}/model"
    settings = load_settings(recipe, [], {})
    assert (settings.run.name, settings.model.path) == (recipe.stem, path)
    model = theirs.model.model_copy(update={"path": path})
    assert settings == theirs.model_copy(update={"run": settings.run, "model": model})
    decided = with_box_space(load_settings(recipe, [f"model.path={published}"], {}))
    assert decided.model.box_space == ("pixels" if "2.5" in family else "relative_1000")
    for file in hardware or HARDWARE:
        assert_fits(load_settings([recipe, file], [], {}), published)


def test_there_is_a_recipe_for_each_run_of_the_paper() -> None:
    names = product(["vg150", "psg"], ["open", "closed"], ["2b", "7b"], ["sft", "zero", "grpo"])
    rewards = {"vg150-closed-7b-soft", "vg150-closed-7b-relaxed"}
    assert {path.stem for path in RECIPES} == {"-".join(name) for name in names} | rewards
    sizes = {"qwen2.5-vl": ["3b", "7b", *LARGE], "qwen3-vl": ["4b", "8b"], "qwen3.5": ["4b"]}
    models = [f"{family}-{size}" for family, all_of_it in sizes.items() for size in all_of_it]
    others = product(["vg150", "psg"], ["closed"], models, ["sft", "zero", "grpo"])
    assert {path.stem for path in FAMILY_RECIPES} == {"-".join(name) for name in others}


def toy(tmp_path: Path, **sections: dict[str, object]) -> Settings:
    from scene_data.toy.scenes import make_toy

    make_toy(tmp_path / "toy", num_train=40, num_heldout=4)
    base: dict[str, object] = {
        "model": {"path": "assets/toy-start", "dtype": "float32"},
        "data": {"train": str(tmp_path / "toy/train.parquet"), "template": "toy"},
        "trainer": {"groups_per_step": 8, "num_epochs": 2},
    }
    return Settings.model_validate(base | sections)


def test_says_steps_and_memory_and_is_a_file_of_settings(tmp_path: Path) -> None:
    settings = toy(tmp_path)
    text = dry_run(settings)
    assert "# steps: 10, 2.00 epochs of 40 images" in text
    assert text.endswith("on 1 trainer GPU; 1 rollout server")
    pairs = {"rollout": {"tensor_parallel_size": 2}, "cluster": {"gpu_memory_gib": 8}}
    on_two = dry_run(settings.changed(**pairs))
    assert on_two.endswith("on 1 trainer GPU; 1 rollout server of 2 GPUs")
    assert "# a rollout server on each of its GPUs (GiB): weights 0.0, KV cache 2.8" in on_two
    assert "#   together" in text
    assert "rank 0's host" not in text
    deltas = settings.changed(weights={"encoding": "delta"})
    assert "# in the memory of rank 0's host (GiB): the version before 0.0" in dry_run(deltas)
    (tmp_path / "again.toml").write_text(text)
    assert load_settings(tmp_path / "again.toml", [], {}) == settings
    updates = {"num_mini_batches": 2, "num_iterations": 3}
    assert dry_run(settings.changed(algorithm=updates)).endswith("; 6 updates of 4 images")


def test_of_sft_says_what_is_trained_on_what_and_its_memory(tmp_path: Path) -> None:
    sft: dict[str, object] = {"batch_size": 16, "micro_batch_size": 4, "num_epochs": 2.0}
    settings = toy(tmp_path, sft=sft, run={"root": str(tmp_path)}, algorithm={"beta": 0.1})
    text = dry_run(settings, "sft")
    shape = model_shape(settings.model.path)
    assert f"; {shape.num_parameters / 1e6:.1f} million are trained\n" in text
    assert "# steps: 6, 2.00 epochs of 40 answers\n" in text
    assert "16 answers on 1 trainer GPUs, in 4 micro batches of 4 on each" in text
    assert f"the graphs of {tmp_path}/toy/train.parquet, to be written to {tmp_path}/run/" in text
    assert "reference model" not in text, "it is GRPO's"
    (tmp_path / "again.toml").write_text(text)
    assert load_settings(tmp_path / "again.toml", [], {}) == settings
    half = estimate_sft_memory(settings.changed(sft={"micro_batch_size": 2}), shape)
    whole = estimate_sft_memory(settings, shape)
    assert whole["attention mask"] == 2 * half["attention mask"]
    assert whole["weights"] == half["weights"] == estimate_memory(settings, shape)["weights"]
    with pytest.raises(
        SettingsError, match=r"cluster.gpu_memory_gib .* lower sft.micro_batch_size"
    ):
        dry_run(settings.changed(cluster={"gpu_memory_gib": 0.5}), "sft")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"path": "runs/nothing/model"}}, r"model.path: there is no runs/nothing/model"),
        ({"model": {"path": "tests"}}, "model.path: tests has no config.json"),
        ({"data": {"train": "nothing.parquet"}}, "data.train: nothing.parquet is not a dataset"),
        ({"reward": {"rubric": "nice"}}, "reward.rubric: .*nice"),
        (
            {"data": {"train": "any", "task": "det"}, "reward": {"rubric": "r1-hard"}},
            "reward.rubric: .*'r1-hard' has no term about the graph for task 'det'",
        ),
        ({"cluster": {"gpu_memory_gib": 0.5}}, r"cluster.gpu_memory_gib is 0.5 .*zero_stage"),
        (
            {"weights": {"transport": "ipc"}},
            r"gpu_memory_utilization is 0.85: a trainer rank is on the same GPU",
        ),
        (
            {
                "weights": {"transport": "ipc"},
                "rollout": {"gpu_memory_utilization": 0.2},
                "cluster": {"gpu_memory_gib": 10},
            },
            r"gpu_memory_utilization = 0.2 of 10.0 GiB has no room for a KV cache",
        ),
        (
            {
                "cluster": {"gpu_memory_gib": 4},
                "rollout": {"tensor_parallel_size": 2},
                "deepspeed": {"zero_stage": 0},
            },
            r"0.85 of 4.0 GiB has no room .*: raise it, or rollout.tensor_parallel_size$",
        ),
        (
            {"rollout": {"tensor_parallel_size": 8}},
            r"rollout.tensor_parallel_size = 8 does not divide assets/toy-start, whose "
            r"text_config.num_attention_heads is 4: set it to 1, 2 or 4$",
        ),
        (
            {
                "model": {"path": "Qwen/Qwen2.5-VL-7B-Instruct"},
                "rollout": {"tensor_parallel_size": 3},
            },
            r"size = 3 does not .* text_config.num_attention_heads is 28: set it to 1, 2 or 4$",
        ),
        ({"lora": {"rank": 8}}, r"lora.rank = 8 and weights.transport = 'shm'"),
        ({"lora": {"rank": 8, "dropout": 0.1}, "weights": {"transport": "lora"}}, "lora.dropout"),
    ],
)
def test_what_is_wrong_is_said_with_the_field(
    tmp_path: Path, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        dry_run(toy(tmp_path, **sections))


def test_the_head_s_gradient_and_a_version_for_ipc_count() -> None:
    recipe = CONFIGS / "r1-sgg/vg150-closed-7b-zero.toml"
    hardware = CONFIGS / "hardware/80gbx1.toml"
    shape = model_shape("Qwen/Qwen2-VL-7B-Instruct")

    def parts(*changes: str) -> dict[str, float]:
        return estimate_memory(load_settings([recipe, hardware], changes, {}), shape)

    # Between two steps servers read a whole version on the GPU, which is more than a step takes.
    assert parts("deepspeed.zero_stage=3")["version"] == 2 * shape.num_parameters / GIB
    shm = ("weights.transport=shm", "deploy.kind=colocated")
    found = parts(*shm)
    head = shape.vocab_size * shape.hidden_size
    assert found["head's gradient"] == 2 * head / GIB, "rounded, while layers are computed again"
    assert "version" not in found
    assert "head's gradient" not in parts("trainer.freeze_language_model=true")
    assert parts(*shm, "trainer.float32_head=true")["float32 head"] == 4 * head / GIB


@pytest.mark.parametrize(
    ("dtype", "stage", "several", "vocabulary", "seen"),
    [
        ("float32", 0, True, 33.55, 22.9),
        ("float32", 2, False, 16.78, 24.0),
        ("float32", 2, True, 33.55, 28.4),
        ("float32", 3, True, 33.55, 34.3),
        ("bfloat16", 2, False, 16.78, 23.6),
    ],
)
def test_a_rank_takes_what_deepspeed_was_seen_to_take(
    dtype: str, stage: int, several: bool, vocabulary: float, seen: float
) -> None:
    """Bytes a parameter at the fullest of a process's step, its libraries taken off.

    Seen in VmHWM around `PolicyEngine.train_step`, third step, DeepSpeed 0.19.8, on a CPU: models
    of width 512 and about 44 million parameters, one or two micro batches of 184 tokens.
    """
    settings = Settings.model_validate(
        {
            "model": {"path": "x", "dtype": dtype, "max_pixels": 112 * 112},
            "data": {"train": "x"},
            "rollout": {"max_model_len": 64},
            "sampling": {"max_tokens": 40},
            "trainer": {
                "groups_per_step": 2,
                "group_size": 4,
                "tokens_per_micro_batch": 184 if several else 400,
            },
            "deepspeed": {"zero_stage": stage},
        }
    )
    shape = replace(
        model_shape("Qwen/Qwen2-VL-2B-Instruct"),
        tower=600_000,
        projector=900_000,
        language=42_000_000,
        hidden_size=512,
        intermediate_size=2048,
        num_layers=2,
        vocab_size=round(vocabulary * 1e6 / 512),
        vision_layers=2,
        vision_hidden_size=192,
    )
    parts = estimate_memory(settings, shape, on_gpu=False)
    found = sum(gib for name, gib in parts.items() if name != "context") * GIB
    assert found / shape.num_parameters == pytest.approx(seen, rel=0.08), parts


def test_sharding_offloading_and_adapters_need_less(tmp_path: Path) -> None:
    recipe = load_settings(CONFIGS / "r1-sgg/vg150-closed-7b-zero.toml", [], {})
    shape = model_shape(recipe.model.path)

    def total(**deepspeed: object) -> float:
        return sum(estimate_memory(recipe.changed(deepspeed=deepspeed), shape).values())

    stages = [total(zero_stage=stage) for stage in (0, 1, 2, 3)]
    assert stages == sorted(stages, reverse=True)
    assert len(set(stages)) == 4
    assert total(zero_stage=2, offload_optimizer=True) < stages[2]
    assert sum(estimate_memory(recipe.changed(lora={"rank": 16}), shape).values()) < stages[1]
