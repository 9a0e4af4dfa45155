"""From the bytes of a request to the bytes of its answer: all the work, and nothing else.

Pure but for the log, so that it runs in a thread or in another process alike.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from reward_service.scoring import RewardScorer, make_scorer
from reward_service.service.request_parsing import read_request
from reward_service.similarity.registry import Similarities
from services.errors import SggError, TooLargeError
from services.schemas.rewards import GroupError, RewardGroup, RewardResponse, ScoredGroup

logger = logging.getLogger(__name__)

_INTERNAL = "internal error; the service's log has the traceback"
_RESPONSE = TypeAdapter(RewardResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A `RewardResponse` as JSON, and what metrics and spans say about it."""

    content: bytes
    rubric: str
    num_groups: int
    num_failed_groups: int
    statuses: dict[str, int]
    """Completions by status."""
    scoring_s: float
    """From a request's bytes to its answer's, without waiting."""


class Answerer:
    """Answers `POST /v1/rewards`; keeps nothing of a request.

    Example: `Answerer(Similarities()).answer(b'{"groups": [...]}').content`
    """

    def __init__(self, similarities: Similarities) -> None:
        self._similarities = similarities

    def answer(self, body: bytes) -> Answer:
        """Score a `RewardRequest` and write a `RewardResponse`, both as JSON.

        Raises:
            InvalidInputError: The request or its rubric is wrong.
            TooLargeError: It is over a limit on counts.
            SggError: Every group failed.
        """
        started = time.perf_counter()
        request = read_request(body)
        # A scorer is made in microseconds, and a table that changed on disk counts at once.
        scorer = make_scorer(request.rubric, request.task, self._similarities)
        groups = request.in_order(_score(scorer, request.groups, credit=request.credit))
        name = scorer.rubric.name
        response = RewardResponse(rubric=name, rubric_version=scorer.rubric_version, groups=groups)
        return Answer(
            content=_RESPONSE.dump_json(response),
            rubric=name,
            num_groups=len(groups),
            num_failed_groups=sum(group.error is not None for group in groups),
            statuses=dict(Counter(reward.status for group in groups for reward in group.rewards)),
            scoring_s=time.perf_counter() - started,
        )


def _score(
    scorer: RewardScorer, groups: Sequence[RewardGroup], *, credit: bool
) -> list[ScoredGroup]:
    """All at once; where that fails, one by one, so that the others keep their rewards."""
    try:
        return scorer.score(groups, credit=credit)
    except TooLargeError:
        raise  # alone, one by one, they would cost more
    except Exception as error:  # noqa: BLE001 — whatever it is, it may be of one group
        logger.warning("a batch failed (%r); its %d groups are scored alone", error, len(groups))
    scored, failures = [], []
    for group in groups:
        try:
            scored += scorer.score([group], credit=credit)
        except Exception as error:  # noqa: BLE001 — the other groups keep their rewards
            failures.append(_known(error, group))
            scored.append(_failed(group, failures[-1]))
    if len(failures) == len(groups):
        raise failures[0]
    return scored


def _known(error: Exception, group: RewardGroup) -> SggError:
    if isinstance(error, SggError):
        return error
    logger.error("scoring of group %s failed", group.group_id, exc_info=error)
    return SggError(_INTERNAL)


def _failed(group: RewardGroup, error: SggError) -> ScoredGroup:
    # What nobody foresaw may pass: after a restart, on another worker, with other neighbours.
    retryable = error.retryable or type(error) is SggError
    return ScoredGroup(
        group_id=group.group_id,
        rewards=[],
        error=GroupError(detail=error.message, retryable=retryable),
    )
