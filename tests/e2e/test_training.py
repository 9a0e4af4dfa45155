"""The whole loop, nothing faked: vLLM, reward service, Redis, DeepSpeed on two ranks."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from rollout_service.http.app import make_engine
from scene_data.dataset import open_dataset
from scene_data.templates import prompt_messages
from scene_graph.boxes import RELATIVE_1000
from services.http.clients.rollout import RolloutClient
from services.run_folder.index import RolloutIndex
from services.run_folder.index_line import RolloutFilter
from services.schemas.common import Sampling
from services.schemas.groups import TrainGroup
from services.schemas.rewards import Task
from services.schemas.rollouts import Completion, InlineImage, RolloutRequest
from services.settings import Settings, dump_settings
from tests.e2e.conftest import TrainingServices
from tests.e2e.training_run import LOGPROB_TOLERANCE, Run, lay_out, logprob_gaps
from tests.live_servers import serving
from tests.processes import sgg_process
from trainer.algorithms.losses import policy_loss
from trainer.algorithms.weighting import completion_weights
from trainer.batches.token_credit import token_advantages
from trainer.collection.advantages import with_advantages
from trainer.collection.group_scoring import GroupScoring
from trainer.policy.model import load_processor

STEPS = 3


@pytest.fixture(scope="module")
def trained(training_services: TrainingServices, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three asynchronous steps on two ranks that share all weights; the server is sent them."""
    folder = tmp_path_factory.mktemp("run")
    run = lay_out(
        training_services,
        folder,
        "http",
        zero_stage=3,
        evaluation={"every": 1, "num_images": 4, "max_tokens": 48},
        num_steps=STEPS,
        num_ranks=2,
        max_policy_lag=1,
    )
    with sgg_process(run.log, "train", "--config", str(run.config)) as process:
        assert process.wait(500) == 0, run.log.read_text()[-4000:]
    return run


def test_versions_advance_within_the_lag(trained: Run) -> None:
    metrics = trained.rows("metrics.jsonl")
    assert [row["policy_version"] for row in metrics] == [0, 1, 2]
    assert all(row["policy_lag_max"] <= 1 for row in metrics)
    assert all(row["num_groups"] == 4 for row in metrics)
    policy = httpx.get(f"{trained.settings.rollout.url}/v1/policy", trust_env=False).json()
    assert policy["policy_version"] == STEPS


def test_versions_are_evaluated_meanwhile(trained: Run) -> None:
    rows = trained.rows("evaluations.jsonl")
    last = trained.rows("metrics.jsonl")[-1]
    assert last["evaluations_failed"] == 0
    assert len(rows) + last["evaluations_skipped"] == STEPS + 1
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert rows[-1]["step"] == rows[-1]["policy_version_newest"] == STEPS
    for row in rows:
        assert row["step"] <= row["policy_version_oldest"] <= row["policy_version_newest"]
        assert row["num_images"] == 4
        assert row["completion_length_mean"] > 1
    assert f"evaluated version {STEPS} " in trained.log.read_text()


def test_ledger_has_each_group_once_and_ranks_share_them(trained: Run) -> None:
    ledger = trained.rows("ledger.jsonl")
    used = [name for row in ledger for name in row["group_ids"]]
    assert len(used) == len(set(used)) == 4 * STEPS
    for row in ledger:
        by_rank = trained.rollouts(row["step"])
        names = [[g["rollout"]["group_id"] for g in groups] for groups in by_rank]
        assert [len(n) for n in names] == [2, 2]
        assert sorted(names[0] + names[1]) == sorted(row["group_ids"])
    lines = RolloutIndex(trained.folder).page(RolloutFilter(state="trained"), "oldest").lines
    assert [line.group_id for line in lines] == [
        group["rollout"]["group_id"]
        for step in range(STEPS)
        for group in sorted(
            (group for groups in trained.rollouts(step) for group in groups),
            key=lambda group: group["position"],
        )
    ]


def test_sampler_and_trainer_agree_on_the_same_weights(trained: Run) -> None:
    gaps = logprob_gaps(trained, range(STEPS), stale=False)
    assert len(gaps) > 200
    assert max(gaps) < LOGPROB_TOLERANCE


def test_stale_weights_would_not_agree(trained: Run) -> None:
    """The check above can fail: tokens of an older version differ by more than its tolerance."""
    gaps = logprob_gaps(trained, range(1, STEPS), stale=True)
    if not gaps:
        pytest.skip("no stale tokens in this run")
    assert max(gaps) > LOGPROB_TOLERANCE


def test_logged_loss_is_that_of_the_recorded_batch(trained: Run) -> None:
    for step, row in enumerate(trained.rows("metrics.jsonl")):
        losses = []
        for groups in trained.rollouts(step):
            for group in groups:
                rewards = torch.tensor([r["total"] for r in group["rewards"]]).double()
                expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
                found = torch.tensor(group["advantages"]).double()
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
                for i, answer in enumerate(group["rollout"]["completions"]):
                    completion = Completion.model_validate(answer)
                    logprobs, weight = group["policy_logprobs"][i], 1 / len(completion.token_ids)
                    advantage = group["advantages"][i]
                    losses.append(
                        one_loss(trained.settings, completion, logprobs, advantage, weight)
                    )
        assert len(losses) == 16
        assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def one_loss(
    settings: Settings,
    completion: Completion,
    policy_logprobs: list[float],
    advantages: float | list[float],
    weight: float,
) -> float:
    """A completion's part of its step's loss."""
    ours = torch.tensor([policy_logprobs])
    mask = torch.ones_like(ours)
    out = policy_loss(
        settings.algorithm,
        ours,
        torch.tensor([completion.rollout_logprobs]),
        torch.tensor([advantages]),
        mask,
        mask * weight,
        entropies=torch.zeros_like(ours),
    )
    return float(out.loss)


def advantages_of_tokens(group: TrainGroup, tokenizer: Any) -> list[list[float]]:
    """Each completion's own advantage, or those of its elements."""
    found = []
    for i, completion in enumerate(group.rollout.completions):
        credit = group.rewards[i].credit
        if credit is None:
            found.append([group.advantages[i]] * len(completion.token_ids))
        else:
            of_places = group.element_advantages[i]
            found.append(
                token_advantages(completion, credit, of_places, tokenizer.backend_tokenizer)
            )
    return found


def test_greedy_output_after_updates_is_that_of_a_fresh_server(
    trained: Run, tmp_path: Path
) -> None:
    """A server that took three updates, against one that loads the final checkpoint."""
    updated = greedy_answers(trained.settings.rollout.url, trained.settings)
    base = trained.settings.model_dump(mode="json", exclude_none=True)
    base["run"] = {"name": "fresh", "root": str(tmp_path)}
    base["model"]["path"] = str(trained.folder / "checkpoint")
    base["redis"]["url"] = "redis://127.0.0.1:1/0"  # alone: it serves what it loaded
    settings = Settings.model_validate(base)
    with serving(settings, make_engine(settings)) as server:
        fresh = greedy_answers(server.url, settings)
    assert updated == fresh
    assert len({tuple(tokens) for tokens in fresh}) > 1, "the images must matter"


def greedy_answers(url: str, settings: Settings) -> list[list[int]]:
    dataset = open_dataset(settings.data.train)

    async def ask() -> list[list[int]]:
        async with RolloutClient(url) as client:
            answers = [await client.rollouts(request(dataset[i].image_bytes)) for i in range(4)]
        return [answer.completions[0].token_ids for answer in answers]

    return asyncio.run(ask())


def request(image: bytes) -> RolloutRequest:
    return RolloutRequest(
        messages=prompt_messages("toy", RELATIVE_1000),
        images=[InlineImage(data=base64.b64encode(image).decode())],
        sampling=Sampling(temperature=0.0, max_tokens=48),
    )


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [
        (
            {
                "loss": "gspo",
                "clip_high": 4e-4,
                "advantage_scale": "batch",
                "normalise": "terms",
                "mask_truncated": True,
            },
            "cls",
        ),
        (
            {
                "loss": "dapo",
                "credit": "element",
                "credit_lambda": 0.9,
                "old_logprobs": "trainer",
                "correction": "truncate",
                "mask_truncated": True,
                "overlong_buffer": 20,
                "overlong_penalty": 2.0,
            },
            "sgg",
        ),
    ],
    ids=["gspo", "dapo"],
)
def test_a_step_over_two_ranks_is_one_step(
    training_services: TrainingServices, tmp_path: Path, algorithm: dict[str, object], task: Task
) -> None:
    """Advantages, weights and loss are those of all groups together, in one batch.

    With dapo each element has its own, from the real reward service. Each on another task, whose
    terms alone are rewarded.

    The last tests of this file: the server serves their policies from here on.
    """
    run = lay_out(
        training_services,
        tmp_path,
        "http",
        algorithm=algorithm,
        num_steps=1,
        num_ranks=2,
        max_policy_lag=0,  # so that the groups are always the same
    )
    base = run.settings.model_dump(mode="json")
    changed = {"sampling": {"max_tokens": 48}, "data": base["data"] | {"task": task}}
    whole = Settings.model_validate(base | changed)
    run.config.write_text(dump_settings(whole))
    with sgg_process(run.log, "train", "--config", str(run.config)) as process:
        assert process.wait(500) == 0, run.log.read_text()[-4000:]
    rows = [row for groups in run.rollouts(0) for row in groups]
    fields = ("position", "index", "rollout", "rewards")
    groups = [TrainGroup.model_validate({name: row[name] for name in fields}) for row in rows]
    terms = {term for group in groups for reward in group.rewards for term in reward.breakdown}
    assert ("node_box" in terms, "triplet_f1" in terms) == (task == "sgg", True)
    weights = asyncio.run(GroupScoring(whole).term_weights())
    expected = with_advantages(groups, whole.algorithm, weights, max_tokens=48)
    assert [row["advantages"] for row in rows] == [
        pytest.approx(group.advantages, abs=1e-9) for group in expected
    ]
    tokenizer = load_processor(whole).tokenizer
    advantages = [each for group in expected for each in advantages_of_tokens(group, tokenizer)]
    by_element = whole.algorithm.credit == "element"
    assert any(len(set(of_tokens)) > 1 for of_tokens in advantages) == by_element
    completions = [c for group in groups for c in group.rollout.completions]
    truncated = [c.finish_reason == "length" for c in completions]
    assert any(truncated)
    assert not all(truncated)
    step_loss = sum(
        one_loss(whole, completion, policy, advantage, weight)
        for completion, policy, advantage, weight in zip(
            completions,
            [logprobs for row in rows for logprobs in row["policy_logprobs"]],
            advantages,
            completion_weights(
                whole.algorithm, [len(c.token_ids) for c in completions], truncated, max_tokens=48
            ),
            strict=True,
        )
    )
    (metrics,) = run.rows("metrics.jsonl")
    assert metrics["loss"] == pytest.approx(step_loss, abs=1e-5)
    assert abs(step_loss) > 1e-4
