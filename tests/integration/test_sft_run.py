"""SFT on real DeepSpeed, on one rank and on two, against plain PyTorch and against GRPO's loader.

The model trains in float32 on CPU, so sums in another order are all that may differ.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from scene_data.toy.tiny_model import make_tiny_model
from services.errors import SettingsError
from services.settings import Settings, dump_settings, load_settings
from tests.processes import sgg_process
from trainer.not_finite import MAX_SKIPPED, NotFiniteError
from trainer.policy.model import load_model
from trainer.ranks.stop import StopRequest
from trainer.sft.rows import IGNORED, AnswerCollator, AnswerRows
from trainer.sft.train import _Progress, _Trainer, run_sft

ROWS, BATCH = 16, 4
TOLERANCE = 1e-5
"""Sums in another order change weights by no more in 6 steps of lr 1e-3."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Six steps of graphs in shuffled order, the fifth in the second epoch, after a checkpoint."""
    folder = tmp_path_factory.mktemp("sft")
    make_tiny_model(folder / "model")
    make_toy(folder / "toy", num_train=ROWS, num_heldout=1)
    return Settings.model_validate(
        {
            "run": {"name": "whole", "root": str(folder / "runs")},
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "data": {"train": str(folder / "toy/train.parquet"), "template": "toy"},
            "sft": {
                "num_steps": 6,
                "batch_size": BATCH,
                "micro_batch_size": 2,
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "checkpoint_every": 5,
                "shuffle_graph": True,
            },
            "records": {"tensorboard": True},
        }
    )


def changed(settings: Settings, name: str, **sections: dict[str, Any]) -> Settings:
    """The same run under another name."""
    tree = settings.model_dump(mode="json", exclude_none=True)
    tree["run"]["name"] = name
    for section, fields in sections.items():
        tree[section] |= fields
    return Settings.model_validate(tree)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).state_dict())


def lines(run: Settings, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run.folder / name).read_text().splitlines()]


def assert_close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=TOLERANCE, rtol=0, msg=name)


@pytest.fixture(scope="module")
def whole(settings: Settings) -> Settings:
    """A run on one rank, never interrupted."""
    run_sft(settings)
    return settings


@pytest.fixture(scope="module")
def two_ranks(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The same batches on two ranks with ZeRO-2, as a user starts it, an adapter only."""
    run = changed(
        settings,
        "adapter",
        trainer={"num_ranks": 2, "gradient_checkpointing": True},
        lora={"rank": 4},
    )
    folder = tmp_path_factory.mktemp("two")
    config, log = folder / "run.toml", folder / "log"
    config.write_text(dump_settings(run))
    with sgg_process(log, "sft", "--config", str(config)) as process:
        assert process.wait(300) == 0, log.read_text()[-4000:]
    assert log.read_text().count(f"wrote {run.run.files.model}") == 1, "rank 0 alone speaks"
    return run


def test_sft_trains_every_part_and_writes_a_loadable_folder(whole: Settings) -> None:
    folder = whole.run.folder / "model"
    before, after = weights(whole.model.path), weights(folder)
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    assert AutoProcessor.from_pretrained(folder).image_processor.size["shortest_edge"] == 3136
    assert {file.suffix for file in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    assert not (whole.run.folder / "adapter").exists()


def test_its_model_starts_grpo(whole: Settings) -> None:
    grpo = whole.model_copy(
        update={
            "model": whole.model.model_copy(update={"path": str(whole.run.folder / "model")}),
        }
    )
    model = load_model(grpo).eval()
    rows = AnswerRows(open_dataset(whole.data.train), whole)
    batch = AnswerCollator(AutoProcessor.from_pretrained(grpo.model.path))([rows.table()[0]])
    with torch.no_grad():
        started = load_model(whole).eval()(**batch)
        trained = model(**batch)
        assert trained.loss < started.loss - 0.1
        prompt = {k: v for k, v in batch.items() if k != "labels"}
        length = int((batch["labels"][0] == IGNORED).sum())
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            prompt[name] = prompt[name][:, :length]
        made = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    expected = trained.logits[0, length - 1].argmax()
    assert made[0, length] == expected


def test_the_first_step_is_plain_pytorchs(whole: Settings) -> None:
    """Loss: mean over the batch's answer tokens. Its gradient's norm shows any wrong scaling."""
    model = load_model(whole)
    rows = AnswerRows(open_dataset(whole.data.train), whole)
    table, order = rows.table(), list(rows)
    processor = AutoProcessor.from_pretrained(whole.model.path)
    batch = AnswerCollator(processor)([table[i] for i in order[:BATCH]])
    loss = model(**batch).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.requires_grad])
    first = lines(whole)[0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    whole: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = changed(whole, "resumed")
    stop = StopRequest()

    def ask(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            stop.hear(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(_Progress, "on_step_end", ask)
        assert run_sft(other, stop=stop) is None
    assert [p.name for p in (other.run.folder / "checkpoints").glob("check*")] == ["checkpoint-4"]
    assert not (other.run.folder / "model").exists()

    def interrupt(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Progress, "on_step_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sft(other, resume=True)
    torn = other.run.folder / "checkpoints/checkpoint-6"
    torn.mkdir()  # as a kill in mid-write leaves it
    names = sorted(p.name for p in (other.run.folder / "checkpoints").glob("checkpoint-*"))
    assert names == ["checkpoint-5", "checkpoint-6"]
    run_sft(other, resume=True)
    assert_close(weights(whole.run.folder / "model"), weights(other.run.folder / "model"))
    one, two = lines(whole), lines(other)
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    assert two[5]["loss"] == pytest.approx(one[5]["loss"], abs=TOLERANCE)
    assert one[5]["epoch"] == 1.5


def test_a_resume_with_another_dataset_wants_a_flag(whole: Settings) -> None:
    heldout = str(Path(whole.data.train).with_name("heldout.parquet"))
    other = changed(whole, whole.run.name, data={"train": heldout})
    with pytest.raises(SettingsError, match=r"  data.train: .* then, .* now\n.*--allow-changes"):
        run_sft(other, resume=True)


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("spoilt", [{2}, set(range(9))])
def test_steps_that_are_not_finite_change_nothing(
    whole: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: int,
    spoilt: set[int],
) -> None:
    sections = {"sft": {"num_steps": 8}, "deepspeed": {"zero_stage": stage}}
    run = changed(whole, f"spoilt-{stage}-{len(spoilt)}", **sections)
    loss_of = _Trainer.compute_loss

    def spoil(self: Any, *arguments: Any, **more: Any) -> Any:
        loss = loss_of(self, *arguments, **more)
        return loss * float("nan") if self.state.global_step in spoilt else loss

    monkeypatch.setattr(_Trainer, "compute_loss", spoil)
    if len(spoilt) > 1:
        with pytest.raises(NotFiniteError, match=f"in {MAX_SKIPPED} steps in a row"):
            run_sft(run)
        assert not (run.run.folder / "model").exists()
        return
    run_sft(run)
    assert all(tensor.isfinite().all() for tensor in weights(run.run.folder / "model").values())
    skipped = [record.getMessage() for record in caplog.records if "is skipped" in record.message]
    assert skipped == ["step 3 is skipped: its gradients are not finite"]
    # At stage 0 DeepSpeed tells no norm of any step.
    without_norm = [row["step"] for row in lines(run) if row["grad_norm"] is None]
    assert without_norm == ([3] if stage else list(range(1, 9)))


def test_two_ranks_train_an_adapter_as_one_does(two_ranks: Settings) -> None:
    alone = changed(two_ranks, "alone", trainer={"num_ranks": 1})
    run_sft(alone)
    for one, two in zip(lines(alone), lines(two_ranks), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=TOLERANCE)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    assert_close(weights(alone.run.folder / "model"), weights(two_ranks.run.folder / "model"))


def test_its_loss_is_drawn_and_its_settings_are_kept(two_ranks: Settings) -> None:
    files = two_ranks.run.files
    assert {file.name for file in files.plots.iterdir()} == {"learning.png", "phases.png"}
    with Image.open(files.plots / "learning.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10, "not an empty picture"
    assert load_settings(files.config, environment={}).sft == two_ranks.sft


def test_an_adapter_is_written_alone_and_merged(two_ranks: Settings) -> None:
    base, merged = weights(two_ranks.model.path), weights(two_ranks.run.folder / "model")
    changed_names = [name for name in base if not torch.equal(base[name], merged[name])]
    assert changed_names
    assert all("language_model" in name and "_proj" in name for name in changed_names)
    model = AutoModelForImageTextToText.from_pretrained(two_ranks.model.path)
    adapted = PeftModel.from_pretrained(model, two_ranks.run.folder / "adapter")
    again = dict(adapted.merge_and_unload().state_dict())
    assert_close(again, merged)
