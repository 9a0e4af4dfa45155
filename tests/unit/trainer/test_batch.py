from types import SimpleNamespace

import pytest
import torch

from scene_data.tiny_model import make_tiny_model
from scene_data.toy import render, toy_scene
from services.errors import InvalidInputError
from services.schemas.rollouts import Completion, RolloutGroup, VersionSpan
from services.settings import Settings
from trainer.batch import micro_batches
from trainer.model import load_processor
from trainer.types import TrainGroup

IMAGES = [render(toy_scene(0, i, heldout=False)) for i in range(2)]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    settings = Settings.model_validate(
        {
            "model": {"path": str(folder), "min_pixels": 12544, "max_pixels": 12544},
            "data": {"train": "unused"},
        }
    )
    loaded: SimpleNamespace = load_processor(settings)
    return loaded


def group(prompt: list[int], lengths: list[int]) -> TrainGroup:
    completions = [
        Completion(
            text="",
            token_ids=[40 + n] * n,
            rollout_logprobs=[-float(n)] * n,
            finish_reason="stop",
            policy_versions=[VersionSpan(policy_version=0, start=0, end=n)],
        )
        for n in lengths
    ]
    return TrainGroup(
        position=0,
        index=0,
        rollout=RolloutGroup(
            group_id="g",
            attempt=0,
            incarnation=1,
            server_id="s",
            prompt_token_ids=prompt,
            completions=completions,
            sampling_s=0,
        ),
        rewards=[],
        advantages=[float(n) for n in lengths],
    )


def test_completions_line_up_with_their_logprobs(processor: SimpleNamespace) -> None:
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    first, second = group([9, *[image] * 16, 8], [2, 4]), group([*[image] * 16, 8], [1, 3])
    weights = [[0.5, 0.25], [1.0, 1.0]]
    batches = micro_batches(
        [first, second], IMAGES, weights, processor, max_tokens=44, image_token_id=image
    )
    assert [b.input_ids.shape for b in batches] == [(2, 22), (2, 20)]
    batch = batches[0]
    assert batch.input_ids[0, 18:20].tolist() == [42, 42]
    assert batch.attention_mask.sum(dim=1).tolist() == [20, 22]
    here = batch.loss_mask.bool()
    assert batch.targets[here].tolist() == [42, 42, 44, 44, 44, 44]
    assert batch.input_ids.flatten()[batch.source[here] + 1].tolist() == [42, 42, 44, 44, 44, 44]
    assert batch.token_weights[here].tolist() == [0.5] * 2 + [0.25] * 4
    assert batch.rollout_logprobs[batch.loss_mask.bool()].tolist() == [-2.0] * 2 + [-4.0] * 4
    assert batch.mm_token_type_ids.sum(dim=1).tolist() == [16, 16]
    assert batch.image_grid_thw.tolist() == [[1, 8, 8], [1, 8, 8]]
    assert batch.pixel_values.shape[0] == 2 * 64
    torch.testing.assert_close(batch.pixel_values[:64], batch.pixel_values[64:])
    assert batch.advantages.tolist() == [2.0, 4.0]


def test_prompt_that_does_not_fit_its_image_is_refused(processor: SimpleNamespace) -> None:
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    with pytest.raises(InvalidInputError, match=r"15 image tokens.*makes 16"):
        micro_batches(
            [group([image] * 15, [2])],
            IMAGES[:1],
            [[1.0]],
            processor,
            max_tokens=100,
            image_token_id=image,
        )
