"""The shared prompt against the plain way: one padded sequence for each completion."""

import copy
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from scene_data.toy.tiny_model import Family, make_tiny_model
from services.errors import SettingsError
from services.settings import Settings
from tests.train_groups import noise_sample, random_group
from trainer.algorithms.logprobs import SamplingDistribution, token_logprobs
from trainer.batches.batch import MicroBatch, PreparedGroup, micro_batch, prepare_group
from trainer.batches.images import image_features
from trainer.batches.micro_batches import plan_step
from trainer.policy.adapter import add_adapter, save_adapter
from trainer.policy.export import exported_parameters
from trainer.policy.logprob_model import LogprobModel
from trainer.policy.model import load_model, load_processor, placeholder_ids

LENGTHS = [[3, 9, 1, 5], [2, 2, 7, 4]]
TEMPERATURE = 0.8


class Loaded:
    def __init__(self, folder: Any, family: Family) -> None:
        make_tiny_model(folder, family=family)
        settings = Settings.model_validate(
            {
                "model": {
                    "path": str(folder),
                    "dtype": "float32",
                    "min_pixels": 12544,
                    "max_pixels": 50176,
                },
                "data": {"train": "unused"},
            }
        )
        self.processor = load_processor(settings)
        self.model = load_model(settings).double()
        self.model.set_experts_implementation("eager")  # torch's grouped product has no float64
        self.plain = copy.deepcopy(self.model)
        self.image_id = int(self.model.config.image_token_id)
        self.suppressed = placeholder_ids(self.processor.tokenizer)
        self.wrapped: PeftModel | None = None

    def groups(self) -> list[PreparedGroup]:
        """Two groups with images of different sizes, text before and after the image."""
        rng = random.Random(0)
        pictures = [noise_sample(rng), noise_sample(rng, 224, 112)]
        groups = []
        for index, (picture, lengths) in enumerate(zip(pictures, LENGTHS, strict=True)):
            image = image_features(picture, self.processor)
            group = random_group(rng, prompt=9 - index, lengths=lengths, index=index)
            group.rollout.prompt_token_ids[4:4] = [self.image_id] * image.num_tokens
            groups.append(
                prepare_group(
                    group,
                    [1.0] * len(lengths),
                    image,
                    self.model.model.get_rope_index,
                    image_token_id=self.image_id,
                )
            )
        return groups

    def batches(self, groups: Sequence[PreparedGroup], max_tokens: int) -> list[MicroBatch]:
        (plan,) = plan_step([g.group for g in groups], num_ranks=1, max_tokens=max_tokens)
        return [micro_batch(rows, dict(enumerate(groups))) for rows in plan.micro_batches]

    def scorer(self) -> LogprobModel:
        drawn_from = SamplingDistribution(
            temperature=TEMPERATURE, suppressed=tuple(self.suppressed)
        )
        score = partial(token_logprobs, distribution=drawn_from, chunk=5)
        return LogprobModel(self.model, score)

    def plainly(self, groups: Sequence[PreparedGroup]) -> list[torch.Tensor]:
        """Log-probabilities of each completion: a batch of one row each, padded on the right."""
        rows = [
            (g.group.rollout.prompt_token_ids, c.token_ids, g.image)
            for g in groups
            for c in g.group.rollout.completions
        ]
        pad_sequence = torch.nn.utils.rnn.pad_sequence
        ids = [torch.tensor([*prompt, *answer]) for prompt, answer, _ in rows]
        input_ids = pad_sequence(ids, batch_first=True)
        logits = self.plain(
            input_ids=input_ids,
            attention_mask=pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            mm_token_type_ids=(input_ids == self.image_id).long(),
            pixel_values=torch.cat([image.pixels for _, _, image in rows]),
            image_grid_thw=torch.stack([image.grid for _, _, image in rows]),
        ).logits
        logits = (logits / TEMPERATURE).index_fill(-1, torch.tensor(self.suppressed), -torch.inf)
        found = torch.log_softmax(logits, dim=-1)
        return [
            found[i, len(p) - 1 : len(p) - 1 + len(a)].gather(1, torch.tensor(a)[:, None])[:, 0]
            for i, (p, a, _) in enumerate(rows)
        ]

    def with_adapter(self) -> "Loaded":
        """The same model with an adapter of the default layers that changes what they give."""
        adapted = copy.copy(self)
        adapted.model = copy.deepcopy(self.plain)
        settings = Settings.model_validate(
            {
                "model": {"path": "unused"},
                "data": {"train": "unused"},
                "lora": {"rank": 2},
                "weights": {"transport": "lora"},
            }
        )
        adapted.wrapped = add_adapter(adapted.model, settings)
        torch.manual_seed(0)
        for name, parameter in adapted.model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.plain = copy.deepcopy(adapted.model)
        return adapted


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where transformers casts to float32, so that rounding hides no mistake."""
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(scope="module", params=get_args(Family))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(tmp_path_factory.mktemp("model"), request.param)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize(
    ("max_tokens", "count", "reentrant"), [(400, 1, None), (60, 2, False), (30, 8, True)]
)
def test_logprobs_and_gradients_are_those_of_separate_sequences(
    loaded: Loaded, max_tokens: int, count: int, reentrant: bool | None
) -> None:
    """All in one batch, groups in batches of their own, and groups cut in pieces.

    With activations kept, and computed again by either way of checkpointing.
    """
    compare(loaded, max_tokens, count, reentrant)


def test_an_adapter_s_gradients_are_those_of_separate_sequences(loaded: Loaded) -> None:
    """An adapter in every layer that mixes tokens, of recurrent ones too."""
    adapted = loaded.with_adapter()
    compare(adapted, 60, 2, False)
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    mixers = {
        name: [n for n in trained if n.startswith(f"{name}.")]
        for name, module in adapted.model.model.language_model.named_modules(
            prefix="model.language_model"
        )
        if name.endswith((".self_attn", ".linear_attn"))
    }
    for name, adapters in mixers.items():
        assert len(adapters) == (6 if name.endswith("linear_attn") else 8), name
    assert len(mixers) == len(adapted.model.model.language_model.layers)


def test_a_saved_adapter_merges_into_the_model_that_was_trained(
    loaded: Loaded, tmp_path: Path
) -> None:
    """As `sgg-rl train` leaves it, and as docs/training.md merges it."""
    adapted, groups = loaded.with_adapter(), loaded.groups()
    assert adapted.wrapped is not None
    named = exported_parameters(adapted.model, adapter_only=True, trainable_only=True)
    save_adapter(adapted.wrapped, {n: p.detach() for n, p in named}, tmp_path)
    want, start = adapted.plainly(groups), loaded.plainly(groups)
    model = PeftModel.from_pretrained(copy.deepcopy(loaded.plain), str(tmp_path))
    adapted.plain = model.merge_and_unload()
    assert not [name for name, _ in adapted.plain.named_parameters() if "lora" in name]
    for merged, trained, before in zip(adapted.plainly(groups), want, start, strict=True):
        torch.testing.assert_close(merged, trained, atol=1e-6, rtol=0)
        assert (merged - before).abs().max() > 1e-2


def compare(loaded: Loaded, max_tokens: int, count: int, reentrant: bool | None) -> None:
    """Rows in batches of so many tokens, against separate sequences."""
    groups, scorer = loaded.groups(), loaded.scorer()
    loaded.model.gradient_checkpointing_disable()
    if reentrant is not None:
        loaded.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    want = loaded.plainly(groups)
    upstream = [torch.linspace(-1, 1.5, len(logprobs)) for logprobs in want]
    sum(((w * u).sum() for w, u in zip(want, upstream, strict=True)), torch.zeros(())).backward()
    want_gradients = gradients(loaded.plain)

    got: dict[int, torch.Tensor] = {}
    size = len(LENGTHS[0])
    batches = loaded.batches(groups, max_tokens)
    for batch in batches:
        scored = scorer(batch)
        numbers = [place * size + i for place, i in batch.order]
        weight = torch.nn.utils.rnn.pad_sequence([upstream[n] for n in numbers], batch_first=True)
        (scored.logprobs * weight).sum().backward()
        rows = zip(numbers, scored.logprobs.detach(), batch.loss_mask, strict=True)
        got |= {n: row[mask.bool()] for n, row, mask in rows}
        assert not scored.logprobs[~batch.loss_mask.bool()].any()
    assert len(batches) == count
    assert sorted(got) == list(range(8))
    for n, logprobs in enumerate(want):
        torch.testing.assert_close(got[n], logprobs.detach(), atol=1e-10, rtol=0)
    got_gradients = gradients(loaded.model)
    assert got_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(
            got_gradients[name],
            gradient,
            atol=1e-8 * float(gradient.abs().max()) + 1e-12,
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("layer", ["conv1d", "embed_tokens"])
def test_an_adapter_on_what_is_no_linear_layer_is_refused(tmp_path: Path, layer: str) -> None:
    make_tiny_model(tmp_path, family="qwen3_5")
    model = {"path": str(tmp_path), "dtype": "float32"}
    lora = {"rank": 2, "target_modules": rf".*language_model.*\.(q_proj|{layer})"}
    settings = Settings.model_validate({"model": model, "data": {"train": "unused"}, "lora": lora})
    with pytest.raises(SettingsError, match=rf"(?i)lora\.target_modules.*{layer}"):
        add_adapter(load_model(settings), settings)


def test_an_adapter_on_the_output_layer_is_refused(loaded: Loaded) -> None:
    adapted = get_peft_model(
        copy.deepcopy(loaded.model), LoraConfig(r=2, target_modules=["lm_head"])
    ).get_base_model()
    with pytest.raises(SettingsError, match=r"lora\.target_modules.*lm_head"):
        LogprobModel(adapted, partial(token_logprobs, distribution=SamplingDistribution(), chunk=5))
