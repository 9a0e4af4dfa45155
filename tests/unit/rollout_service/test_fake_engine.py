"""The engine without a model keeps the promises of the real one."""

import io
import json

import pytest
from PIL import Image

from rollout_service.engine import GroupRequest
from rollout_service.fake.engine import FakeEngine
from rollout_service.fake.vocabulary import ByteVocabulary, ModelVocabulary
from services.errors import EngineError, InvalidInputError
from services.schemas.common import ChatMessage, ImagePart, Sampling, TextPart
from services.schemas.rollouts import Completion
from services.settings import DataSettings, ModelSettings, Settings
from tests.shm_versions import ShmRun
from trainer.batches.images import ImageCheck
from trainer.policy.model import load_processor
from weight_sync.transports.files import StagedFile, open_plain

MESSAGES = [ChatMessage(role="user", content=[ImagePart(), TextPart(text="What is there?")])]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(tokens_per_s=1_000_000, max_model_len=600)


async def completions(engine: FakeEngine, **sampling: object) -> list[Completion]:
    options = Sampling.model_validate(sampling)
    return (
        await engine.sample(
            GroupRequest(messages=MESSAGES, images=[b"image"], sampling=options, request_id="r")
        )
    ).completions


def is_scene(text: str) -> bool:
    try:
        return set(json.loads(text)) == {"objects", "relationships"}
    except ValueError:
        return False


async def test_most_answers_are_scenes_and_some_are_not(engine: FakeEngine) -> None:
    answers = await completions(engine, n=64, seed=1)
    valid = sum(is_scene(answer.text) for answer in answers)
    assert 40 <= valid < 64
    assert len({answer.text for answer in answers}) > 60


async def test_answers_follow_from_prompt_and_seed(engine: FakeEngine) -> None:
    first = await completions(engine, n=3, seed=1)
    assert await completions(engine, n=3, seed=1) == first
    assert await completions(engine, n=3, seed=2) != first


async def test_answers_say_where_tokens_end_where_that_is_asked_for(engine: FakeEngine) -> None:
    (silent,) = await completions(engine, seed=1)
    (answer,) = await completions(engine, seed=1, token_ends=True)
    assert silent.token_ends is None
    assert "token_ends" not in silent.model_dump()
    assert answer.token_ends == [*range(1, len(answer.text) + 1), len(answer.text)]


async def test_greedy_answers_of_a_group_are_the_same(engine: FakeEngine) -> None:
    assert len({c.text for c in await completions(engine, n=4, temperature=0)}) == 1


async def test_lengths_agree_and_end_with_the_end(engine: FakeEngine) -> None:
    for answer in await completions(engine, n=8):
        length = len(answer.token_ids)
        assert len(answer.rollout_logprobs) == length
        assert answer.policy_versions[-1].end == length
        assert answer.token_ids[-1] == ByteVocabulary.end
        assert answer.finish_reason == "stop"


async def test_limits_and_suppressed_tokens(engine: FakeEngine) -> None:
    for answer in await completions(engine, n=8, max_tokens=5, suppress_token_ids=[ord("{")]):
        assert len(answer.token_ids) == 5
        assert answer.finish_reason == "length"
        assert "{" not in answer.text


async def test_prompts_that_do_not_fit(engine: FakeEngine) -> None:
    long = [ChatMessage(role="user", content=[TextPart(text="x" * 700)])]
    with pytest.raises(InvalidInputError, match="700 tokens"):
        await engine.sample(GroupRequest(messages=long, sampling=Sampling(), request_id="r"))
    with pytest.raises(InvalidInputError, match="image parts"):
        await engine.sample(GroupRequest(messages=MESSAGES, sampling=Sampling(), request_id="r"))


async def test_weights_are_loaded_while_paused_only(engine: FakeEngine, shm_run: ShmRun) -> None:
    version = shm_run.write(1)
    staged = StagedFile(open_plain(version.file))
    with pytest.raises(EngineError, match="paused"):
        await engine.load_weights(staged, version.manifest)
    await engine.pause()
    await engine.load_weights(staged, version.manifest)
    staged.close()
    await engine.resume()
    assert (await completions(engine))[0].policy_versions[0].policy_version == 1


@pytest.mark.parametrize("size", [(112, 112), (640, 480), (30, 900)])
async def test_a_trainer_understands_the_models_vocabulary(size: tuple[int, int]) -> None:
    model = ModelSettings(path="assets/toy-start", min_pixels=112 * 112, max_pixels=448 * 448)
    engine = FakeEngine(tokens_per_s=1e6, max_model_len=600, vocabulary=ModelVocabulary(model))
    picture = io.BytesIO()
    Image.new("RGB", size).save(picture, "PNG")
    result = await engine.sample(
        GroupRequest(
            messages=MESSAGES, images=[picture.getvalue()], sampling=Sampling(n=8), request_id="r"
        )
    )
    settings = Settings(model=model, data=DataSettings(train="toy"))
    processor = load_processor(settings)
    expected = ImageCheck(processor).num_tokens(picture.getvalue())
    assert result.prompt_token_ids.count(6) == expected
    decode = processor.tokenizer.decode
    assert decode(result.prompt_token_ids, skip_special_tokens=True) == "What is there?"
    for answer in result.completions:
        assert answer.token_ids[-1] == processor.tokenizer.eos_token_id
        assert decode(answer.token_ids[:-1]) == answer.text
    assert any(is_scene(answer.text) for answer in result.completions)
