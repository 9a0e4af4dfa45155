"""What the index of a run's groups says about one."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from scene_graph.graph import NORMAL_IDS
from scene_graph.notations.answer import NotationName
from services.run_folder.index_line import IndexLine
from services.run_folder.records import RolloutRecord
from trainer.types import UnusedGroup

MAX_NAMES = 24
"""Names of predicates and of objects at most, so that a line has no more than about 2 KiB."""
_NAME_CHARACTERS = 40
_TEXT_CHARACTERS = 20_000
"""So much of an answer is looked at."""
_REASON_CHARACTERS = 300
_NAME = re.compile(r'"(id|subject|object|predicate)"\s*:\s*"([^"\\\n]*(?:\\.[^"\\\n]*)*)"')

_COMPACT_EDGE = re.compile(r"[A-Z]{1,4} +(.+) +[A-Z]{1,4}")
_COMPACT_OBJECT = re.compile(r"[A-Z]{1,4} +([^ 0-9-].*?)(?: +-?[0-9][0-9.]*)*")


def index_line(record: RolloutRecord, file: str, offset: int, length: int) -> IndexLine:
    """The line of a record.

    Args:
        record: The group.
        file: Its name, in `rollouts/`.
        offset: Bytes before the record.
        length: Bytes of the record.
    """
    completions = record.rollout.completions
    notation = record.reference.notation if record.reference else "json"
    texts = [completion.text for completion in completions]
    predicates, objects = sampled_names(texts, notation)
    spans = (span for completion in completions for span in completion.policy_versions)
    images = record.prompt.images if record.prompt else []
    return IndexLine(
        step=record.step,
        position=record.position,
        group_id=record.rollout.group_id,
        file=file,
        offset=offset,
        length=length,
        image=images[0].sha256 if images else None,
        row=record.index,
        state=record.state,
        reason=record.reason[:_REASON_CHARACTERS],
        **_rewards(record),
        statuses=dict(Counter(reward.status for reward in record.rewards)),
        predicates=predicates,
        objects=objects,
        truncated=sum(completion.finish_reason == "length" for completion in completions),
        versions=sorted({span.policy_version for span in spans}),
    )


def line_without_answers(unused: UnusedGroup, step: int) -> IndexLine:
    """The line of a group of which no answer can be kept."""
    return IndexLine(
        step=step,
        position=unused.position,
        group_id=unused.group_id,
        file=None,
        row=unused.index,
        state=unused.state,
        reason=unused.reason[:_REASON_CHARACTERS],
    )


def sampled_names(
    texts: Iterable[str], notation: NotationName = "json"
) -> tuple[list[str], list[str]]:
    """Predicates and names of objects that answers have, whether or not they are well-formed.

    Normalised, the most frequent ones first, `MAX_NAMES` of each.

    Args:
        texts: The answers.
        notation: That they should be written in.
    """
    predicates: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    answers = "\n".join(text[:_TEXT_CHARACTERS] for text in texts)
    found = _NAME.findall(answers) if notation == "json" else _compact_names(answers)
    for (key, written), count in Counter(found).items():
        normal, category = NORMAL_IDS[_unescaped(written)]
        if key == "predicate":
            predicates[normal[:_NAME_CHARACTERS]] += count
        else:
            objects[category[:_NAME_CHARACTERS]] += count
    return _most(predicates), _most(objects)


def _compact_names(answers: str) -> Iterator[tuple[str, str]]:
    """As `_NAME` finds them."""
    for line in map(str.strip, answers.splitlines()):
        if found := _COMPACT_EDGE.fullmatch(line):
            yield "predicate", found[1].strip('"')
        elif found := _COMPACT_OBJECT.fullmatch(line):
            yield "id", found[1].strip('"')


def _most(names: Counter[str]) -> list[str]:
    return [name for name, _ in names.most_common(MAX_NAMES)]


def _unescaped(written: str) -> str:
    if "\\" not in written:
        return written
    try:
        return str(json.loads(f'"{written}"'))
    except ValueError:
        return written


def _rewards(record: RolloutRecord) -> dict[str, float]:
    totals = [reward.total for reward in record.rewards]
    if not totals:
        return {}
    return {"mean": fmean(totals), "std": spread(totals), "min": min(totals), "max": max(totals)}


def spread(values: Sequence[float]) -> float:
    """The standard deviation of all there are, without the exact fractions of `statistics`."""
    mean = fmean(values)
    return math.sqrt(fmean((value - mean) ** 2 for value in values))
