import io
import json
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from scene_data import dataset
from scene_data.dataset import MAX_BROKEN_ROWS, open_dataset
from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, make_toy
from scene_data.toy.tiny_model import make_tiny_model
from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task
from services.errors import InvalidInputError, SettingsError
from services.settings import DataSettings, ModelSettings, Settings
from services.settings.checks import num_micro_batches
from tests.tagged_pictures import encoded, noise, png_header, tagged, with_chunk
from trainer.batches.images import ImageCheck
from trainer.policy.model import load_processor
from trainer.sft.rows import IGNORED, AnswerCollator, AnswerRows


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("sft")
    make_tiny_model(folder / "model")
    make_toy(folder / "toy", num_train=12, num_heldout=1)
    return Settings(
        model=ModelSettings(
            path=str(folder / "model"),
            dtype="float32",
            box_space="relative_1000",
            box_space_override=True,
        ),
        data=DataSettings(train=str(folder / "toy/train.parquet"), template="toy"),
    )


@pytest.fixture(scope="module")
def processor(settings: Settings) -> Any:
    return AutoProcessor.from_pretrained(settings.model.path)


def _batch(settings: Settings, processor: Any, indices: list[int]) -> dict[str, torch.Tensor]:
    rows = AnswerRows(open_dataset(settings.data.train), settings).table()
    return AnswerCollator(processor)([rows[i] for i in indices])


def test_only_the_answer_and_its_end_are_learned(settings: Settings, processor: Any) -> None:
    dataset = open_dataset(settings.data.train)
    batch = _batch(settings, processor, list(range(12)))
    for sample, labels, ids, mask in zip(
        dataset, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        learned = labels != IGNORED
        assert (labels[learned] == ids[learned]).all()
        wanted = answer_text(sample.graph, RELATIVE_1000, width=SIDE, height=SIDE)
        assert processor.tokenizer.decode(labels[learned]) == wanted + "<|im_end|>"
        assert not (learned & (mask == 0)).any()
        assert int(learned.nonzero()[-1]) == int(mask.sum()) - 1


@pytest.mark.parametrize(("task", "asked"), [("det", "Objects:"), ("cls", "Relationships:")])
def test_rows_ask_and_answer_by_the_task(settings: Settings, task: Task, asked: str) -> None:
    dataset = open_dataset(settings.data.train, task=task)
    row = AnswerRows(dataset, _changed(settings, data={"task": task})).table()[3]
    assert row["messages"][0]["content"][1]["text"] == asked
    graph = dataset[3].graph
    wanted = answer_text(graph, RELATIVE_1000, width=SIDE, height=SIDE, task=task)
    assert row["answer"] == wanted


def test_padding_changes_no_loss(settings: Settings, processor: Any) -> None:
    model = AutoModelForImageTextToText.from_pretrained(settings.model.path).eval()
    together = _batch(settings, processor, list(range(6)))
    assert together["attention_mask"].min() == 0  # there is padding
    with torch.no_grad():
        losses = []
        for index in range(6):
            alone = _batch(settings, processor, [index])
            count = int((alone["labels"] != IGNORED).sum())
            losses.append((model(**alone).loss * count, count))
        mean = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
        assert model(**together).loss == pytest.approx(float(mean), rel=1e-4)


def _changed(settings: Settings, **sections: dict[str, Any]) -> Settings:
    tree = settings.model_dump()
    for section, fields in sections.items():
        tree[section] |= fields
    return Settings.model_validate(tree)


def test_an_epochs_order_is_a_permutation_and_a_function_of_seed_and_epoch(
    settings: Settings,
) -> None:
    dataset = open_dataset(settings.data.train)
    rows = AnswerRows(dataset, settings)
    first = list(rows)
    rows.epoch = 1
    second = list(rows)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    rows.epoch = 0
    assert list(rows) == first
    assert list(AnswerRows(dataset, _changed(settings, run={"seed": 1}))) != first


def test_shuffled_answers_change_with_the_epoch_and_mean_the_same(settings: Settings) -> None:
    shuffling = _changed(settings, sft={"shuffle_graph": True})
    rows = AnswerRows(open_dataset(settings.data.train), shuffling)
    table = rows.table()
    first = [row["answer"] for row in table]
    assert [row["answer"] for row in table] == first
    rows.epoch = 1
    second = [row["answer"] for row in table]
    assert first != second
    for one, two in zip(first, second, strict=True):
        assert _content(one) == _content(two)


def _content(answer: str) -> tuple[set[str], set[str]]:
    graph = json.loads(answer.removeprefix("<answer>").removesuffix("</answer>"))
    objects, relationships = graph["objects"], graph["relationships"]
    return {json.dumps(o) for o in objects}, {json.dumps(r) for r in relationships}


def _write(file: Path, rows: list[dict[str, Any]]) -> str:
    datasets.Dataset.from_list(rows).to_parquet(file)
    return str(file)


def _row(image: bytes | None = None, **more: Any) -> dict[str, Any]:
    png = io.BytesIO()
    Image.new("RGB", (56, 56), "teal").save(png, format="PNG")
    return {
        "image_id": "7",
        "image": {"bytes": image or png.getvalue(), "path": None},
        "objects": json.dumps([{"id": "man.1", "bbox": [0, 0, 28, 56]}]),
        "relationships": "[]",
    } | more


def test_thinking_comes_before_the_answer_and_the_prompt_asks_for_it(
    settings: Settings, tmp_path: Path
) -> None:
    path = _write(tmp_path / "x.parquet", [_row(why="<think>A man.</think>")])
    thinking = _changed(settings, data={"train": path, "thinking": True})
    (row,) = AnswerRows(open_dataset(path, thinking_column="why"), thinking).table()
    assert row["answer"].startswith("<think>A man.</think>\n<answer>{")
    assert "hink" in row["messages"][0]["content"][1]["text"]


def test_truncated_images_are_replaced_up_to_a_bound(settings: Settings, tmp_path: Path) -> None:
    good, num_broken = _row(), MAX_BROKEN_ROWS
    torn = good["image"]["bytes"][:60]  # its header can be read
    path = _write(tmp_path / "x.parquet", [good] + [_row(torn)] * num_broken)
    table = AnswerRows(open_dataset(path), settings).table()
    assert len({row["answer"] for row in table}) == 1
    path = _write(tmp_path / "y.parquet", [good] + [_row(torn)] * (num_broken + 1))
    table = AnswerRows(open_dataset(path), settings).table()
    with pytest.raises(InvalidInputError, match="6 rows have no usable image; the last: image 7"):
        list(table)
    path = _write(tmp_path / "z.parquet", [_row(torn), _row(torn)])
    with pytest.raises(InvalidInputError, match="2 rows have no usable image"):
        AnswerRows(open_dataset(path), settings)


def test_rows_that_were_not_read_are_replaced_without_a_bound(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "MAX_READ", 2)
    monkeypatch.setattr(dataset, "_NEIGHBOURS", 1)
    broken = _row(objects='[{"id": "man.1", "bbox": [0, 0, 28]}]')
    path = _write(tmp_path / "x.parquet", [_row(), *[broken] * (2 * MAX_BROKEN_ROWS), _row()])
    table = AnswerRows(open_dataset(path), settings).table()
    assert len(table) == 2 * MAX_BROKEN_ROWS + 2
    assert len({row["answer"] for row in table}) == 1


def test_what_pillow_raises_costs_the_row(
    settings: Settings, processor: Any, tmp_path: Path
) -> None:
    """A bomb, too many pixels, a text that is too long, a strip, another size than the row says."""
    good = _row()
    text = with_chunk(good["image"]["bytes"], b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2_000_000))
    strip = encoded(Image.new("RGB", (3000, 20)))
    bad = [_row(png_header(side, side)) for side in (9_000, 20_000)]
    bad += [_row(text), _row(strip), _row(width=1024, height=768)]
    rows = [{"width": 56, "height": 56} | row for row in [*bad, good]]
    for row in rows[:4]:
        row["width"] = row["height"] = None
    path = _write(tmp_path / "x.parquet", rows)
    small = load_processor(_changed(settings, model={"max_pixels": 12544}))
    check = ImageCheck(small)
    table = AnswerRows(open_dataset(path), settings, check).table()
    wanted = answer_text(
        open_dataset(path)[5].graph, RELATIVE_1000, width=56, height=56, task="sgg"
    )
    assert [row["answer"] for row in table] == [wanted] * 6
    assert {row["image"].size for row in table} == {(56, 56)}


def test_the_picture_is_upright(settings: Settings, tmp_path: Path) -> None:
    upright = noise(40, 56)
    path = _write(tmp_path / "x.parquet", [_row(tagged(upright, 6))])
    (row,) = AnswerRows(open_dataset(path), settings).table()
    assert np.array_equal(np.asarray(row["image"]), upright)
    graph = open_dataset(path)[0].graph
    assert row["answer"] == answer_text(graph, RELATIVE_1000, width=56, height=40)


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 4, 3), (1, 8, 2), (1.5, 8, 3)])
def test_steps_of_a_run(settings: Settings, epochs: float, batch: int, steps: int) -> None:
    run = _changed(settings, sft={"batch_size": batch, "micro_batch_size": 2, "num_epochs": epochs})
    assert run.sft.total_steps(12) == steps
    assert _changed(run, sft={"num_steps": 7}).sft.total_steps(12) == 7


def test_a_step_makes_as_many_micro_batches_on_every_rank(settings: Settings) -> None:
    run = _changed(
        settings, sft={"batch_size": 16, "micro_batch_size": 2}, trainer={"num_ranks": 4}
    )
    assert num_micro_batches(run) == 2
    uneven = _changed(run, sft={"batch_size": 12})
    with pytest.raises(SettingsError, match=r"sft.batch_size \(12\) .* trainer.num_ranks \(4\)"):
        num_micro_batches(uneven)
