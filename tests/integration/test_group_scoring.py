"""Sampled groups are asked for and scored by the run's task, whatever the service answers."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from reward_service.service.request_handler import Answerer
from reward_service.similarity.registry import Similarities
from scene_data.dataset import open_dataset
from scene_data.templates import answer_text
from scene_data.toy.scenes import SIDE, make_toy
from scene_graph.boxes import RELATIVE_1000
from scene_graph.cleaning import Task
from scene_graph.notations.answer import NotationName
from services.errors import (
    InvalidInputError,
    SggError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    WaitTimeoutError,
)
from services.http.problems import problem_response
from services.schemas.rewards import GroupError
from services.schemas.rollouts import Completion, RolloutGroup
from services.settings import Settings
from tests.reward_process import GOLDEN, TOKEN, running
from trainer.collection.group_pool import GroupSource
from trainer.collection.group_scoring import MAX_GROUPS, GroupScoring, RewardsOrError
from trainer.collection.prompts import PromptSource

GROUP = RolloutGroup.model_validate_json((GOLDEN / "rollout_group.json").read_text())
TERMS = {
    "sgg": {"format", "node_category", "node_box", "object_precision", "triplet_f1"},
    "det": {"format", "node_category", "node_box", "object_precision"},
    "cls": {"format", "triplet_f1"},
}


async def score(settings: Settings, task: Task, notation: NotationName) -> None:
    """The right answer earns the most that the task's terms can pay."""
    asked_for = {"task": task, "notation": notation}
    by_element = settings.algorithm.model_copy(update={"credit": "element"})
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update=asked_for), "algorithm": by_element}
    )
    dataset = open_dataset(settings.data.train, task=task)
    prompt, source = PromptSource(settings, dataset, [7]).prompt(0)
    asked = prompt.model_dump()["messages"][0]["content"][1]["text"]
    words = {"sgg": "scene graph:", "det": "objects:", "cls": "relationships:"}[task]
    assert asked == (words if notation == "json" else f"compact {words}").capitalize()
    right, other = (
        answer_text(
            source.sample.graph, RELATIVE_1000, width=SIDE, height=SIDE, task=task, notation=name
        )
        for name in (notation, "compact" if notation == "json" else "json")
    )
    completions = [
        Completion(
            text=text,
            token_ids=[1],
            rollout_logprobs=[0.0],
            finish_reason="stop",
            policy_versions=[],
        )
        for text in (right, other)
    ]
    group = GROUP.model_copy(update={"group_id": prompt.group_id, "completions": completions})
    scoring = GroupScoring(settings)
    (((_, rewards),),) = [found async for found in scoring.score([(group, source)])]
    await scoring.aclose()
    assert isinstance(rewards, list)
    best, worst = rewards
    assert set(best.breakdown) == TERMS[task]
    assert best.breakdown["format"] == 1
    assert min(best.breakdown.values()) > 0.99
    assert (worst.status, worst.total) == ("no_answer", 0)
    assert best.credit is not None
    of_elements = sum(best.credit.increments)
    assert of_elements == pytest.approx(best.total - 0.5), "the tags earn 0.5 of all"
    first, last = best.credit.spans[0][0], best.credit.spans[-1][1]
    assert right[first:last].count("\n" if notation == "compact" else "{") >= len(best.credit.spans)


async def test_each_task_is_asked_for_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path / "toy", num_train=4, num_heldout=1)
    monkeypatch.setenv("SGG_DATA_TOKEN", TOKEN)
    with running(tmp_path / "log") as (url, _):
        settings = Settings.model_validate(
            {
                "run": {"root": str(tmp_path)},
                "model": {"path": "none", "box_space": "relative_1000"},
                "data": {"train": str(tmp_path / "toy/train.parquet"), "template": "toy"},
                "reward": {"url": url},
            }
        )
        for task in ("sgg", "det", "cls"):
            await score(settings, task, "json")
            await score(settings, task, "compact")


class FailingService(ThreadingHTTPServer):
    """Scores as the service does, but where a test wants it to fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault: Callable[[list[str]], SggError | None] = lambda names: None
        """The answer to a request for groups of these names, instead of rewards."""
        self.may_pass: Callable[[str], bool] = lambda name: False
        """Whether a group gets a `retryable` error beside the others' rewards."""
        self.asked: list[int] = []
        """Groups of each request."""
        self.knows_credit = True
        """Whether it answers what each element adds, where that is asked."""


class _Handler(BaseHTTPRequestHandler):
    server: FailingService

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        names = [group["group_id"] for group in json.loads(body)["groups"]]
        self.server.asked.append(len(names))
        if error := self.server.fault(names):
            self._answer(error.status, bytes(problem_response(error).body))
            return
        answer = json.loads(Answerer(Similarities()).answer(body).content)
        for group in answer["groups"]:
            if not self.server.knows_credit:
                group["rewards"] = [
                    {k: v for k, v in reward.items() if k != "credit"}
                    for reward in group["rewards"]
                ]
            if self.server.may_pass(group["group_id"]):
                group["rewards"], group["error"] = [], {"detail": "busy", "retryable": True}
        self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[FailingService]:
    with FailingService() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


MakeScoring = Callable[..., GroupScoring]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, num_train=4, num_heldout=1)
    return folder / "train.parquet"


@pytest.fixture
def make_scoring(
    service: FailingService, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> MakeScoring:
    monkeypatch.setattr("services.waiting.PAUSE_S", 0.01)

    def make(
        *, wait_timeout_s: float = 30.0, timeout_s: float = 0.5, credit: str = "answer"
    ) -> GroupScoring:
        url = f"http://127.0.0.1:{service.server_address[1]}"
        settings = Settings.model_validate(
            {
                "run": {"root": str(tmp_path)},
                "model": {"path": "none", "box_space": "relative_1000"},
                "data": {"train": str(toy), "template": "toy"},
                "reward": {"url": url, "timeout_s": timeout_s},
                "trainer": {"wait_timeout_s": wait_timeout_s},
                "algorithm": {"credit": credit},
            }
        )
        return GroupScoring(settings)

    return make


@pytest.fixture(scope="module")
def source(toy: Path) -> GroupSource:
    sample = open_dataset(str(toy))[0]
    return GroupSource(sample=sample, box_space=RELATIVE_1000, num_image_tokens=None)


async def until_settled(
    scoring: GroupScoring, source: GroupSource, *names: str
) -> dict[str, RewardsOrError]:
    """What comes of groups, given back as long as that may help."""
    found: dict[str, RewardsOrError] = {}
    left = [(GROUP.model_copy(update={"group_id": name}), source) for name in names]
    while left:
        again = []
        async for some in scoring.score(left):
            for group, each in some:
                assert group.group_id not in found
                if isinstance(each, GroupError) and each.retryable:
                    again.append((group, source))
                else:
                    found[group.group_id] = each
        left = again
    await scoring.aclose()
    return found


def unscored(found: dict[str, RewardsOrError]) -> dict[str, str]:
    return {name: each.detail for name, each in found.items() if isinstance(each, GroupError)}


def fail_for_a_while(service: FailingService, num_faults: int, error: SggError) -> None:
    """Fail so often, then never again."""
    left = [error] * num_faults
    service.fault = lambda names: left.pop() if left else None


async def test_too_many_groups_are_sent_in_parts(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    service.fault = lambda names: TooLargeError("too large") if len(names) > 2 else None
    scoring = make_scoring()
    found = await until_settled(scoring, source, *"abcdefg")
    assert (len(found), unscored(found)) == (7, {})
    assert max(service.asked[service.asked.index(2) :]) <= 4
    assert 1 <= scoring.max_groups <= 3


@pytest.mark.parametrize(("credit", "most"), [("answer", MAX_GROUPS), ("element", MAX_GROUPS // 2)])
async def test_elements_may_double_what_is_compared_so_half_as_many_groups_are_sent(
    make_scoring: MakeScoring, source: GroupSource, credit: str, most: int
) -> None:
    scoring = make_scoring(credit=credit)
    assert scoring.max_groups == most
    names = [f"g{number}" for number in range(most)]
    assert unscored(await until_settled(scoring, source, *names)) == {}
    assert scoring.max_groups == most, "it grows no further"


async def test_a_service_that_knows_no_credit_is_named(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    service.knows_credit = False
    found = await until_settled(make_scoring(credit="element"), source, "a")
    assert "start it from this release" in unscored(found)["a"]


@pytest.mark.parametrize("error", [TooLargeError, InvalidInputError])
async def test_a_group_that_is_refused_alone_costs_itself(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource, error: type[SggError]
) -> None:
    service.fault = lambda names: error("c is odd") if "c" in names else None
    found = await until_settled(make_scoring(), source, *"abcdefg")
    assert (len(found), unscored(found)) == (7, {"c": "c is odd"})


@pytest.mark.parametrize("error", [SggError, UnavailableError])
async def test_a_group_that_always_fails_is_given_up_while_others_are_scored(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource, error: type[SggError]
) -> None:
    service.fault = lambda names: error("c breaks it") if "c" in names else None
    found = await until_settled(make_scoring(wait_timeout_s=3.0), source, *"abcdefg")
    assert (len(found), unscored(found)) == (7, {"c": "c breaks it (others are scored)"})


async def test_a_group_that_may_be_scored_later_is_scored_later(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    times = [True] * 5
    service.may_pass = lambda name: name == "b" and bool(times) and times.pop()
    found = await until_settled(make_scoring(), source, *"abc")
    assert (len(found), unscored(found), times) == (3, {}, [])


async def test_a_group_that_may_never_be_scored_is_given_up(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    service.may_pass = lambda name: name == "b"
    found = await until_settled(make_scoring(wait_timeout_s=2.0), source, *"abc")
    assert (len(found), unscored(found)) == (3, {"b": "busy (others are scored)"})


@pytest.mark.parametrize(
    "error", [SggError("internal"), WaitTimeoutError("gateway"), UnavailableError("full")]
)
async def test_a_service_that_fails_for_a_while_is_waited_for(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource, error: SggError
) -> None:
    scoring = make_scoring()
    fail_for_a_while(service, 4, error)
    assert unscored(await until_settled(scoring, source, *"abc")) == {}


async def test_one_that_is_slow_for_many_groups_is_asked_for_few(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    def slowly(names: list[str]) -> None:
        if len(names) > 2:
            time.sleep(1.0)

    service.fault = slowly
    scoring = make_scoring(timeout_s=0.3)
    assert unscored(await until_settled(scoring, source, *"abcd")) == {}
    assert scoring.max_groups < MAX_GROUPS


@pytest.mark.parametrize("scored_before", [False, True])
async def test_nothing_is_given_up_where_the_service_fails_at_everything(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource, scored_before: bool
) -> None:
    scoring = make_scoring(wait_timeout_s=0.3)
    if scored_before:
        [_ async for _ in scoring.score([(GROUP, source)])]
    service.fault = lambda names: SggError("the disk is gone")
    with pytest.raises(WaitTimeoutError, match=r"nothing was scored for .* the disk is gone"):
        await until_settled(scoring, source, *"abc")
    await scoring.aclose()


async def test_a_wrong_token_ends_the_run_at_once(
    make_scoring: MakeScoring, service: FailingService, source: GroupSource
) -> None:
    service.fault = lambda names: UnauthorizedError("another token")
    scoring = make_scoring()
    with pytest.raises(UnauthorizedError):
        await until_settled(scoring, source, *"abc")
    await scoring.aclose()
