"""From the bytes of a request to the groups that can be scored.

A wrong group is set aside with the path of its mistake, and the others are scored; what is wrong
outside of groups refuses the request. All limits on counts are here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import from_json

from services.errors import InvalidInputError, TooLargeError
from services.http.guard import check_json
from services.http.problems import invalid_input, mistake
from services.schemas.rewards import GroupError, RewardGroup, RewardRequest, ScoredGroup, Task
from services.schemas.versions import is_later, parse

MAX_GROUPS = 1024
"""In a request."""
MAX_COMPLETIONS = 16_384
"""In a request, all groups together."""
MAX_VALUES = 400_000
"""In a request: 390 for each of `MAX_GROUPS`."""
_MAX_KEYS = 32
"""Most keys of one JSON object; messages have at most 7. Each unknown key is a mistake, and to
collect millions of them costs gigabytes."""
_MAX_RUBRIC_KEYS = 10_000
"""Most keys of one table in a rubric: as many predicates as a rubric may know."""
_MAX_ITEMS = 2001
"""Items of a reference's list that are looked at: validation stops where it is over its limit."""
_MAX_GROUP_ID = 200
_MAX_MISTAKES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """A request, as far as it can be answered."""

    task: Task
    rubric: str | dict[str, Any]
    credit: bool
    groups: list[RewardGroup]
    """Those that can be scored, at least one, in the order of the request."""
    refused: dict[int, ScoredGroup] = field(default_factory=dict)
    """The answer to each group that cannot, by its place in the request."""

    def in_order(self, scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """The answers to all groups of the request, given those to `groups`."""
        rest = iter(scored)
        num_groups = len(self.groups) + len(self.refused)
        return [self.refused[i] if i in self.refused else next(rest) for i in range(num_groups)]


class _Envelope(RewardRequest):
    groups: list[Any] = Field(min_length=1)


def read_request(body: bytes) -> ReadRequest:
    """Parse and validate the body of `POST /v1/rewards`.

    It is parsed to plain objects first and validated from them: as fast as in one go for honest
    bodies, cheaper for hostile ones, and one wrong group stands alone.

    Raises:
        InvalidInputError: It is not JSON, no group is valid, or something outside of groups is not.
        TooLargeError: It has more groups or completions than the limits.
    """
    check_json(body, MAX_VALUES)
    tree = _parse(body)
    envelope = _read_envelope(tree)
    if len(envelope.groups) > MAX_GROUPS:
        raise TooLargeError(
            f"the request has {len(envelope.groups)} groups; send at most {MAX_GROUPS} at a time"
        )
    later = is_later(tree)
    groups: list[RewardGroup] = []
    wrong: dict[int, InvalidInputError] = {}
    for i, sent in enumerate(envelope.groups):
        try:
            groups.append(_read_group(sent, i, later=later))
        except InvalidInputError as error:
            wrong[i] = error
    if not groups:
        raise _together(list(wrong.values()))
    refused = {i: _refusal(envelope.groups[i], error) for i, error in wrong.items()}
    num_completions = sum(len(group.completions) for group in groups)
    if num_completions > MAX_COMPLETIONS:
        raise TooLargeError(
            f"the request has {num_completions} completions; send at most {MAX_COMPLETIONS} "
            "at a time, in fewer groups"
        )
    return ReadRequest(
        task=envelope.task,
        rubric=envelope.rubric,
        credit=envelope.credit,
        groups=groups,
        refused=refused,
    )


def _parse(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        pass
    # Half a surrogate pair is wrong to the fast parser; sampled text may have one all the same.
    try:
        return json.loads(body)
    except ValueError as error:
        raise mistake("body", f"not JSON: {error}") from error


def _read_envelope(tree: Any) -> _Envelope:
    if not isinstance(tree, dict):
        raise mistake("body", "not a JSON object")
    rubric = tree.get("rubric")
    tables = [rubric, *rubric.values()] if isinstance(rubric, dict) else []
    if _longest(tables) > _MAX_RUBRIC_KEYS:
        raise mistake("body.rubric", f"an object with over {_MAX_RUBRIC_KEYS} keys")
    if len(tree) > _MAX_KEYS:
        raise mistake("body", f"an object with over {_MAX_KEYS} keys")
    try:
        return parse(_Envelope, tree)
    except ValidationError as error:
        raise invalid_input(_found(error), ("body",)) from error


def _read_group(sent: Any, index: int, *, later: bool) -> RewardGroup:
    if _longest(_parts(sent)) > _MAX_KEYS:
        raise mistake(f"body.groups.{index}", f"an object with over {_MAX_KEYS} keys")
    try:
        return RewardGroup.model_validate(sent, extra="ignore" if later else None)
    except ValidationError as error:
        raise invalid_input(_found(error), ("body", "groups", index)) from error


def _parts(sent: Any) -> list[Any]:
    """A group, its reference, and the objects and relationships that will be looked at."""
    parts = [sent]
    reference = sent.get("reference") if isinstance(sent, dict) else None
    if isinstance(reference, dict):
        parts.append(reference)
        for items in (reference.get("objects"), reference.get("relationships")):
            parts += items[:_MAX_ITEMS] if isinstance(items, list) else []
    return parts


def _longest(values: Sequence[Any]) -> int:
    return max((len(value) for value in values if isinstance(value, dict)), default=0)


def _found(error: ValidationError) -> list[Any]:
    # Without the input: it may be huge.
    return error.errors(include_url=False, include_input=False, include_context=False)


def _refusal(sent: Any, error: InvalidInputError) -> ScoredGroup:
    name = sent.get("group_id") if isinstance(sent, dict) else None
    # Half a surrogate pair cannot be written as UTF-8.
    shown = (
        name[:_MAX_GROUP_ID].encode("utf-8", "replace").decode() if isinstance(name, str) else ""
    )
    first = error.mistakes[0]
    more = " (and more)" if len(error.mistakes) > 1 else ""
    detail = f"{first.path.removeprefix('body.')}: {first.message}{more}"
    return ScoredGroup(group_id=shown, rewards=[], error=GroupError(detail=detail))


def _together(errors: Sequence[InvalidInputError]) -> InvalidInputError:
    if len(errors) == 1:
        return errors[0]
    mistakes = [found for error in errors for found in error.mistakes][:_MAX_MISTAKES]
    first = f"{mistakes[0].path}: {mistakes[0].message}"
    return InvalidInputError(f"none of the {len(errors)} groups is valid; {first}", mistakes)
