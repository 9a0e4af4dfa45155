from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from scene_data.dataset import open_dataset
from scene_data.templates import answer_text
from scene_data.tiny_model import make_tiny_model
from scene_data.toy import SIDE, make_toy
from services.settings import DataSettings, ModelSettings, Settings
from trainer.sft import IGNORED, AnswerCollator, answer_rows


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("sft")
    make_tiny_model(folder / "model")
    make_toy(folder / "toy", num_train=12, num_heldout=1)
    return Settings(
        model=ModelSettings(path=str(folder / "model"), dtype="float32"),
        data=DataSettings(train=str(folder / "toy/train.parquet"), template="toy"),
    )


@pytest.fixture(scope="module")
def processor(settings: Settings) -> Any:
    return AutoProcessor.from_pretrained(settings.model.path)


def _batch(settings: Settings, processor: Any, indices: list[int]) -> dict[str, torch.Tensor]:
    rows = answer_rows(open_dataset(settings.data.train), settings)
    return AnswerCollator(processor)([rows[i] for i in indices])


def test_only_the_answer_and_its_end_are_learned(settings: Settings, processor: Any) -> None:
    dataset = open_dataset(settings.data.train)
    batch = _batch(settings, processor, list(range(12)))
    for sample, labels, ids, mask in zip(
        dataset, batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
    ):
        learned = labels != IGNORED
        assert (labels[learned] == ids[learned]).all()
        wanted = answer_text(sample.graph, "relative_1000", width=SIDE, height=SIDE)
        assert processor.tokenizer.decode(labels[learned]) == wanted + "<|im_end|>"
        assert not (learned & (mask == 0)).any()
        assert int(learned.nonzero()[-1]) == int(mask.sum()) - 1


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
