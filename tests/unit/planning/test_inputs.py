"""What a run reads is looked at before a start; dry run, doctor and starts say the same of it."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli import trainer_process
from cli.commands.train.serve import serve_rollout
from launcher.inference import run_inference
from launcher.local_run import run_here
from planning.dry_run import dry_run
from planning.preflight.inputs import checked, checked_model, input_checks
from planning.run_checks import run_checks
from scene_data.toy.scenes import make_toy
from services.errors import SettingsError
from services.settings import Settings

Break = Callable[[Path], dict[str, Any] | None]
"""Spoils the model or the data in a folder; may give settings."""
TEMPLATE = "chat_template.jinja"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data that nothing is wrong with."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree("assets/toy-start", folder / "model")
    make_toy(folder / "toy", num_train=24, num_heldout=4)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "inputs")


def settings(folder: Path, changes: dict[str, Any] | None = None) -> Settings:
    base: dict[str, dict[str, Any]] = {
        "run": {"root": str(folder / "runs")},
        "model": {
            "path": str(folder / "model"),
            "dtype": "float32",
            "box_space": "relative_1000",
            "box_space_override": True,
            "max_pixels": 12544,
        },
        "data": {
            "train": str(folder / "toy/train.parquet"),
            "heldout": str(folder / "toy/heldout.parquet"),
            "template": "toy",
        },
        "redis": {"url": "redis://127.0.0.1:1/0"},
        "rollout": {"url": "http://127.0.0.1:1"},
        "reward": {"url": "http://127.0.0.1:1"},
    }
    for section, fields in (changes or {}).items():
        base[section] = base.get(section, {}) | fields
    return Settings.model_validate(base)


def model_file(name: str, content: str | bytes | None) -> Break:
    """Replaces a file of the model; None removes it."""

    def spoil(folder: Path) -> None:
        file = folder / "model" / name
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def config(**changes: Any) -> Break:
    def spoil(folder: Path) -> None:
        file = folder / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


def adapter(folder: Path) -> None:
    shutil.rmtree(folder / "model")
    (folder / "model").mkdir()
    (folder / "model" / "adapter_config.json").write_text("{}")


def cut_weights(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def lost_shard(folder: Path) -> None:
    model = folder / "model"
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def torch_weights(folder: Path) -> None:
    model = folder / "model"
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def deepspeed(tree: Any) -> Break:
    def spoil(folder: Path) -> dict[str, Any]:
        file = folder / "ds.json"
        file.write_text(tree if isinstance(tree, str) else json.dumps(tree))
        return {"deepspeed": {"config_file": str(file)}}

    return spoil


def rows(*pictures: bytes | None, split: str = "train", **more: Any) -> Break:
    """A JSONL of so many rows; None leaves a row's picture out."""

    def spoil(folder: Path) -> dict[str, Any]:
        lines = []
        for number, picture in enumerate(pictures):
            name = f"{number}.png"
            if picture is not None:
                (folder / name).write_bytes(picture)
            row = {
                "image_id": str(number),
                "image": name,
                "objects": [
                    {"id": "man.1", "bbox": [1, 1, 9, 9]},
                    {"id": "hat.2", "bbox": [1, 1, 5, 5]},
                ],
                "relationships": [{"subject": "man.1", "predicate": "on", "object": "hat.2"}],
            }
            lines.append(json.dumps(row | more))
        file = folder / f"{split}.jsonl"
        file.write_text("\n".join(lines))
        field = {"train": "train", "heldout": "heldout"}[split]
        return {"data": {field: str(file), "template": "open"}}

    return spoil


def changed(**sections: dict[str, Any]) -> Break:
    return lambda folder: sections


def picture(width: int = 112, height: int = 112) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


GOOD, TORN = picture(), picture()[:50]

BROKEN: dict[str, tuple[Break, str]] = {
    "no model": (lambda f: shutil.rmtree(f / "model"), "there is no .*/model .*sgg-rl sft"),
    "an adapter alone": (adapter, "is an adapter without its model: .*merge_and_unload"),
    "another family": (config(model_type="llava"), "model_type 'llava'.*qwen2_5_vl"),
    "config is no JSON": (model_file("config.json", "{"), "config.json is not JSON"),
    "config is a pointer": (model_file("config.json", POINTER), "config.json.*git lfs pull"),
    "quantised": (config(quantization_config={"quant_method": "awq"}), r"is quantised \(awq\)"),
    "a pointer": (model_file("model.safetensors", POINTER), "Git LFS pointer.*git lfs pull"),
    "weights cut short": (cut_weights, r"has \d+ bytes, and its header names \d+"),
    "weights empty": (model_file("model.safetensors", b""), "is no safetensors file"),
    "a shard is missing": (lost_shard, r"lacks 1 of the 2 files .*\(b.safetensors\)"),
    "torch's weights": (torch_weights, "weights in pytorch_model.bin.*save_pretrained"),
    "no weights": (model_file("model.safetensors", None), "has no weights: model.safetensors"),
    "no processor": (model_file("processor_config.json", None), "no image processor: copy prepro"),
    "processor is no JSON": (
        model_file("processor_config.json", "["),
        "processor_con.*not JSON",
    ),
    "no tokenizer": (model_file("tokenizer.json", None), "has no tokenizer: copy tokenizer.json"),
    "its tokenizer's": (
        model_file("tokenizer.json", POINTER),
        "tokenizer.json.*git lfs pull",
    ),
    "tokenizer is none": (model_file("tokenizer.json", '{"model": 3}'), "no tokenizer loads of"),
    "no chat template": (model_file(TEMPLATE, None), "has no chat template: copy chat_template"),
    "a template that fails": (model_file(TEMPLATE, "{% for"), "its chat template fails"),
    "a template without image": (model_file(TEMPLATE, "hi"), "writes 0 placeholders .*one image"),
    "no DeepSpeed JSON": (
        changed(deepspeed={"config_file": "none.json"}),
        "none.json' cannot be read: No such file",
    ),
    "a folder for it": (changed(deepspeed={"config_file": "tests"}), "cannot be read: Is a dir"),
    "comments in it": (deepspeed('{\n// mine\n"a": 1}'), "not JSON.*comments.*: line 2"),
    "a list in it": (deepspeed([1]), r"must hold a JSON object.* it holds \[1\]"),
    "stage as text": (deepspeed({"zero_optimization": {"stage": "3"}}), "stage is '3': a number"),
    "no such key": (deepspeed({"zero_optimization": {"stge": 3}}), "zero_optimization.stge .3.:"),
    "a second batch size": (deepspeed({"train_batch_size": 8}), "train_batch_size .8.: remove it"),
    "no dataset": (changed(data={"train": "nope"}), "data.train: nope is not a dataset"),
    "a path like the hub's": (
        changed(data={"train": "tests/no"}),
        "data.train: there is no tests/no, and",
    ),
    "no held-out set": (changed(data={"heldout": "x.json"}), "data.heldout: x.json is not a"),
    "no pictures": (rows(None, None), r"2 of 2 rows .*\n.*train.jsonl, line 1 .*0.png"),
    "torn pictures": (rows(TORN, TORN), r"data.train: 2 of 2 rows .*\n.*train.jsonl, line 1"),
    "torn held-out pictures": (
        rows(TORN, split="heldout"),
        r"data.heldout: 1 of 1 rows .*\n.*heldout.jsonl, line 1",
    ),
    "another size": (rows(GOOD, width=50, height=40), "train.jsonl, line 1.*50"),
    "answers without room": (
        changed(
            rollout={"max_model_len": 64},
            sampling={"max_tokens": 60},
            evaluation={"max_tokens": 8},
        ),
        r"16 of the image and sampling.max_tokens = 60 make \d+, and rollout.max_model_len is 64: "
        r"raise it to \d+",
    ),
    "held-out answers without room": (
        changed(rollout={"max_model_len": 2048}, evaluation={"max_tokens": 2040}),
        r"heldout.parquet, row \d: .*evaluation.max_tokens = 2040 make",
    ),
    "two settings": (changed(lora={"rank": 8}), "lora.rank = 8 and weights.transport"),
    "a rubric": (changed(reward={"rubric": "nice"}), "reward.rubric: .*nice"),
}


def refusals(wanted: Settings) -> dict[str, str]:
    """What each command says that would refuse; none of them starts anything."""
    starts: dict[str, Callable[[], object]] = {
        "dry run": lambda: dry_run(wanted),
        "train": lambda: trainer_process.train(wanted, resume=False, allow_changes=False),
        "run": lambda: run_here(wanted),
        "demo": lambda: run_here(wanted, evaluate=True),
        "submit": lambda: checked(wanted, fetch=False),
    }
    found = {}
    for name, start in starts.items():
        with pytest.raises(SettingsError) as caught:
            start()
        found[name] = caught.value.message
    missing = [result.detail for result in run_checks(wanted) if result.state == "missing"]
    found["doctor"] = missing[0] if len(missing) == 1 else "\n".join(f"- {m}" for m in missing)
    return found


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN)
def test_all_refuse_the_same_in_the_same_words(folder: Path, spoil: Break, said: str) -> None:
    wanted = settings(folder, spoil(folder))
    found = refusals(wanted)
    assert len(set(found.values())) == 1, found
    message = found["train"]
    assert re.search(said, message), message
    assert "Traceback" not in message
    assert not (folder / "runs" / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("start", [trainer_process.train, trainer_process.sft])
def test_checkpoints_of_the_name_are_refused_before_anything_is_loaded(
    folder: Path, start: Callable[..., None]
) -> None:
    wanted = settings(folder)
    name = "step-000004" if start is trainer_process.train else "checkpoint-4"
    (wanted.run.files.checkpoints / name).mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"checkpoints has checkpoints .* add --resume"):
        start(wanted, resume=False, allow_changes=False)
    assert [path.name for path in wanted.run.folder.iterdir()] == ["checkpoints"]


def test_what_is_whole_passes_and_says_what_was_seen(folder: Path) -> None:
    found = {f.name: (f.state, f.detail) for f in input_checks(settings(folder))}
    assert {state for state, _ in found.values()} == {"ok"}
    assert found["dataset"][1].endswith("24 rows; 16 of them and their pictures read")
    assert found["model"][1].endswith("a qwen2_5_vl")
    text, image = 11, 16  # <|im_start|>user … assistant\n around one token, and 4 x 4 patches
    total = f"make {text + image + 1024}, and rollout.max_model_len is 3072"
    assert found["prompt of data.train"][1].endswith(total)
    assert checked(settings(folder)).model.box_space == "relative_1000"


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / TEMPLATE).unlink()
    wanted = settings(folder, {"data": {"train": "nope"}, "lora": {"rank": 8}})
    with pytest.raises(SettingsError) as caught:
        checked(wanted)
    lines = caught.value.message.splitlines()
    assert lines[0] == "4 things keep this from starting:"
    assert [line.partition(" ")[0] for line in lines[1:]] == ["-"] * 4


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.json", "processor_conf"])
def test_a_template_is_found_wherever_it_stands(folder: Path, place: str) -> None:
    file = folder / "model" / (place if place.endswith(".json") else "processor_config.json")
    text = (folder / "model" / TEMPLATE).read_text()
    (folder / "model" / TEMPLATE).unlink()
    tree = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(tree | {"chat_template": text}))
    checked(settings(folder))


def test_an_image_processor_of_the_older_kind_is_one(folder: Path) -> None:
    model = folder / "model"
    tree = json.loads((model / "processor_config.json").read_text())["image_processor"]
    (model / "processor_config.json").unlink()
    (model / "preprocessor_config.json").write_text(json.dumps(tree))
    checked(settings(folder))


def test_a_few_broken_pictures_are_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = rows(GOOD, TORN, GOOD)(folder)
    checked(settings(folder, changes))
    said = capsys.readouterr().err
    assert "warning: data.train: 1 of 3 rows" in said
    assert "train.jsonl, line 2" in said


def test_inference_refuses_the_same_before_it_starts_a_server(folder: Path) -> None:
    wanted = settings(folder)
    with pytest.raises(SettingsError, match="the dataset: nope is not a dataset"):
        run_inference(wanted, "nope", folder / "out", own_server=True)
    (folder / "model" / TEMPLATE).unlink()
    data = str(folder / "toy/heldout.parquet")
    with pytest.raises(SettingsError, match="has no chat template"):
        run_inference(wanted, data, folder / "out", own_server=True)
    assert not (folder / "out").exists()


def test_a_rollout_server_looks_at_the_model_alone(folder: Path) -> None:
    wanted = settings(folder, {"data": {"train": "nope"}})
    assert checked_model(wanted) == wanted
    cut_weights(folder)
    with pytest.raises(SettingsError, match="its header names"):
        serve_rollout(wanted)


def test_sft_refuses_its_own_settings_too(folder: Path) -> None:
    wanted = settings(folder, {"sft": {"batch_size": 8, "micro_batch_size": 8}})
    two = wanted.model_copy(update={"trainer": wanted.trainer.model_copy(update={"num_ranks": 2})})
    assert checked(wanted, "sft").sft.batch_size == 8
    with pytest.raises(SettingsError, match=r"sft\.batch_size .* must be a multiple"):
        checked(two, "sft")
