"""One group as its page shows it: every completion read, judged and explained."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from markupsafe import Markup

from console.groups.difference import (
    JudgedGraph,
    difference,
    judged_completion,
    judged_reference,
    plain_graph,
)
from console.groups.rules import Rules
from console.runs import Run
from evaluation.report.svg import rect
from reward_service.explain.explainer import (
    Explanation,
    TermLine,
    explain_reward,
    explain_text,
    term_lines,
)
from reward_service.scoring import reference_columns
from scene_graph.boxes import RELATIVE_1000, BoxSpace
from scene_graph.drawing import draw_sketch
from scene_graph.drawing.svg import element
from scene_graph.graph import GraphColumns
from scene_graph.parsing import parse_completion
from services.run_folder.records import RolloutRecord
from services.schemas.rewards import Reward, RewardGroup
from services.schemas.rollouts import Completion

_UNKNOWN_SIZE = (1000, 1000)
"""The size of a picture in a record of an earlier release, which does not say it"""


@dataclass(frozen=True)
class GroupView:
    """A group of a run.

    Args:
        run: The run.
        record: The group's.
        rules: The run's.
    """

    run: Run
    record: RolloutRecord
    rules: Rules

    @property
    def url(self) -> str:
        """The address of its page."""
        name = quote(self.record.rollout.group_id, safe="")
        return f"{self.run.url}/rollouts/{name}?step={self.record.step}"

    @property
    def rows_url(self) -> str:
        """The address of `score_rows`."""
        return self.url.replace("?", "/rows.jsonl?")

    @property
    def image(self) -> str | None:
        """The picture's sha256."""
        images = self.record.prompt.images if self.record.prompt else []
        return images[0].sha256 if images else None

    @property
    def picture(self) -> str | None:
        """The picture's address."""
        return picture_url(self.run, self.image, self.record.index)

    @property
    def size(self) -> tuple[int, int]:
        """The picture's, in pixels."""
        reference = self.record.reference
        return reference.image_size if reference else _UNKNOWN_SIZE

    @property
    def space(self) -> BoxSpace:
        """That completions write their boxes in."""
        reference = self.record.reference
        return BoxSpace.parse(reference.box_space) if reference else RELATIVE_1000

    @cached_property
    def scored(self) -> RewardGroup | None:
        """What the reward service was asked; None where no reference was recorded."""
        reference = self.record.reference
        if reference is None:
            return None
        completions = self.record.rollout.completions
        settings = self.rules.settings
        return RewardGroup.model_construct(
            group_id=self.record.rollout.group_id,
            image_size=reference.image_size,
            box_space=reference.box_space,
            reference=reference.graph,
            completions=[completion.text for completion in completions],
            require_thinking=bool(settings and settings.data.thinking),
            notation=reference.notation,
            num_tokens=None,
        )

    @cached_property
    def reference(self) -> GraphColumns | None:
        """The cleaned reference."""
        return reference_columns(self.scored, self.rules.task)[0] if self.scored else None

    def reference_sketch(self) -> Markup:
        """The reference, small."""
        graph = (
            plain_graph(self.reference.to_graph().scaled(*self.size)) if self.reference else None
        )
        return _sketch(graph, self.size, "Reference", self.picture)

    def score_rows(self) -> Iterator[str]:
        """A line of JSON for each completion, for `sgg-rl score`; none without a reference."""
        scored, record = self.scored, self.record
        if scored is None or record.reference is None:
            return
        for number, completion in enumerate(record.rollout.completions):
            row = {
                "id": f"{record.rollout.group_id}#{number}",
                "completion": completion.text,
                "reference": record.reference.graph.model_dump(mode="json"),
                "image_size": scored.image_size,
                "box_space": scored.box_space,
                "num_tokens": len(completion.token_ids),
                "require_thinking": scored.require_thinking,
                "notation": scored.notation,
            }
            yield json.dumps(row) + "\n"

    @cached_property
    def completions(self) -> list["CompletionView"]:
        """Best advantage first; rewards decide where there is none."""
        views = [
            CompletionView(self, number) for number in range(len(self.record.rollout.completions))
        ]
        return sorted(views, key=lambda view: view.place, reverse=True)

    def completion(self, number: int | None) -> "CompletionView":
        """One by its number; the best one where there is no such."""
        found = [view for view in self.completions if view.number == number]
        return (found or self.completions)[0]


@dataclass(frozen=True)
class CompletionView:
    """One completion of a group.

    Args:
        group: The group.
        number: In the order they were sampled, from 0.
    """

    group: GroupView
    number: int

    @property
    def completion(self) -> Completion:
        """As it was sampled."""
        return self.group.record.rollout.completions[self.number]

    @property
    def reward(self) -> Reward | None:
        """None for a group that was not scored."""
        rewards = self.group.record.rewards
        return rewards[self.number] if self.number < len(rewards) else None

    @property
    def advantage(self) -> float | None:
        """None for a group that was not trained on."""
        advantages = self.group.record.advantages
        return advantages[self.number] if self.number < len(advantages) else None

    @property
    def place(self) -> tuple[float, float, int]:
        """By which completions are sorted."""
        total = self.reward.total if self.reward else 0.0
        return self.advantage or 0.0, total, -self.number

    @property
    def url(self) -> str:
        """The address of the group's page with this completion opened."""
        return f"{self.group.url}&completion={self.number}"

    @property
    def status(self) -> str:
        """In words; with what cut it."""
        status = self.explanation.status.replace("_", " ")
        return f"{status}, truncated" if self.completion.finish_reason == "length" else status

    @cached_property
    def explanation(self) -> Explanation:
        """What `sgg-rl score` says; without verdicts where no reference or reward was recorded."""
        group, text = self.group, self.completion.text
        if group.scored is None or self.reward is None:
            notation = group.rules.notation
            return explain_text(text, group.space, group.rules.task, notation=notation)
        return explain_reward(
            text,
            group.scored,
            self.reward,
            group.rules.weights,
            similarity=group.rules.similarity,
            task=group.rules.task,
        )

    def graphs(self) -> dict[str, JudgedGraph]:
        """What can be drawn, by name: `difference`, `completion`, `reference`."""
        group, found = self.group, self.explanation
        if found.total is None or group.reference is None:
            return {"completion": self._plain()}
        return {
            "difference": difference(found, group.space, group.size),
            "completion": judged_completion(found, group.space, group.size),
            "reference": judged_reference(group.reference, found, group.size),
        }

    def sketch(self) -> Markup:
        """What it hit, missed and made up, small."""
        graph = next(iter(self.graphs().values()))
        return _sketch(graph, self.group.size, f"Completion {self.number}", self.group.picture)

    def _plain(self) -> JudgedGraph:
        group, rules = self.group, self.group.rules
        parsed = parse_completion(
            self.completion.text, group.space, task=rules.task, notation=rules.notation
        )
        return plain_graph(parsed.graph.scaled(*group.size))

    @cached_property
    def terms(self) -> list[TermLine]:
        """Its reward's terms, as the run recorded them."""
        return term_lines(self.reward, self.group.rules.weights) if self.reward else []

    def bar(self) -> Markup:
        """Its terms' parts of the greatest total, side by side."""
        return term_bar(self.terms, sum(self.group.rules.weights.values()))


def picture_url(run: Run, sha256: str | None, row: int) -> str | None:
    """The address of a picture; the row says where it is in the dataset."""
    return f"{run.url}/images/{sha256}?row={row}" if sha256 else None


def term_bar(terms: list[TermLine], most: float) -> Markup:
    """A bar of `term.contribution`s on a scale from 0 to `most`; a negative one has no length."""
    parts, at = [rect(0, 0, 100, 8, "all")], 0.0
    for number, term in enumerate(terms):
        width = 100 * max(term.contribution, 0.0) / most if most else 0.0
        width = min(width, 100 - at)
        hint = f"{term.name}: {term.value:.2f} times {term.weight:g} = {term.contribution:.2f}"
        parts.append(rect(at, 0, width, 8, f"term{number % 8 + 1}", hint))
        at += width
    words = ", ".join(f"{term.name} {term.contribution:.2f}" for term in terms)
    size = {"viewBox": "0 0 100 8", "preserveAspectRatio": "none"}
    return element("svg", *parts, **size, class_="terms", role="img", aria_label=words)


def _sketch(
    graph: JudgedGraph | None, size: tuple[int, int], title: str, picture: str | None
) -> Markup:
    objects = graph.objects if graph else []
    relations = graph.relations if graph else []
    return draw_sketch(
        [(part.box, part.verdict) for part in objects],
        [(link.subject, link.object, link.verdict) for link in relations],
        size,
        title=f"{title}: {len(objects)} objects, {len(relations)} relations",
        picture=picture,
    )


def verdict_counts(graphs: Mapping[str, JudgedGraph]) -> dict[str, int]:
    """Relations of the difference by verdict, in the order of the page."""
    graph = graphs.get("difference")
    if graph is None:
        return {}
    verdicts = [link.verdict for link in graph.relations]
    return {name: verdicts.count(name) for name in ("hit", "near", "miss", "hallucination")}
