"""Groups of a run: found, opened, and one picture over time."""

import json
from typing import Annotated, Any

from fastapi import Query, Request, Response

from console.charts import value_chart
from console.groups.coloured_text import coloured_text
from console.groups.difference import kind_of, reason_of
from console.groups.filters import (
    SORTS,
    STATES,
    STATUSES,
    Asked,
    read_filters,
    step_of,
    whole_number,
)
from console.groups.pictures import picture
from console.groups.rules import Rules, rules_of
from console.groups.tokens import (
    MAX_TOKENS,
    advantages_of_tokens,
    token_rows,
    token_texts,
    tokenizer_of,
)
from console.groups.view import CompletionView, GroupView, verdict_counts
from console.runs import NamedRun, Run
from console.web import CopyRule, copy_rule, page_router, render
from services.errors import InvalidInputError, NotFoundError
from services.run_folder.index import IndexPage, RolloutIndex
from services.run_folder.index_line import IndexLine, RolloutFilter
from services.settings.training import AlgorithmSettings

router = page_router()
NUM_GROUPS = 10
"""On a page"""
NUM_COMPLETIONS = 8
"""Small graphs of a group, on the page of all groups"""
COPIED_STEPS = 8
"""Steps of which a copy on disk has groups"""
NUM_VISITS = 24
"""Visits of a picture over time"""


@router.get("/runs/{run}/rollouts")
def rollouts(request: Request, run: NamedRun) -> Response:
    """Groups that fit the filters; only the list where htmx asks."""
    asked = read_filters(request.query_params)
    rules, copied = rules_of(run), copy_rule(request)
    part = "HX-Request" in request.headers and "HX-Boosted" not in request.headers
    page = render(
        request,
        "groups/rollouts_list.html" if part else "groups/rollouts.html",
        run=run,
        tab="Rollouts",
        asked=asked,
        rules=rules,
        sorts=SORTS,
        states=STATES,
        statuses=STATUSES,
        num_completions=NUM_COMPLETIONS,
        **(_kept(run, rules, copied) if copied else _found(run, rules, asked)),
    )
    page.headers["Vary"] = "HX-Request"  # the way back must not show the list alone
    return page


@router.get("/runs/{run}/rollouts/{group_id}")
def group(
    request: Request, run: NamedRun, group_id: str, step: str = "", completion: str = ""
) -> Response:
    """One group, with one of its completions opened."""
    lines = _lines(run, group_id, step)
    rules = rules_of(run)
    shown = {"run": run, "tab": "Rollouts", "rules": rules, "line": lines[0], "lines": lines}
    try:
        view = GroupView(run, RolloutIndex(run.path).read_record(lines[0]), rules)
    except (NotFoundError, InvalidInputError) as error:
        return render(request, "groups/gone.html", error=error, **shown)
    opened = view.completion(whole_number(completion))
    return render(request, "groups/group.html", view=view, **shown, **_opened(view, opened))


@router.get("/runs/{run}/rollouts/{group_id}/rows.jsonl")
def rows(run: NamedRun, group_id: str, step: str = "") -> Response:
    """The answers of a group as `sgg-rl score` reads them, which can load what this cannot."""
    line = _lines(run, group_id, step)[0]
    view = GroupView(run, RolloutIndex(run.path).read_record(line), rules_of(run))
    return Response("".join(view.score_rows()), media_type="application/jsonl")


@router.get("/runs/{run}/images/{sha256}")
def image(run: NamedRun, sha256: str, row: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """A picture, as an upright JPEG."""
    data = picture(run, rules_of(run), sha256, row)
    # Its name is the digest of what it shows.
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/runs/{run}/images/{sha256}/over-time")
def over_time(request: Request, run: NamedRun, sha256: str) -> Response:
    """Every visit of one picture, the first one first."""
    rules, index = rules_of(run), RolloutIndex(run.path)
    page = index.page(RolloutFilter(image=sha256), limit=NUM_VISITS)
    lines = page.lines[::-1]
    if not lines:
        raise NotFoundError(f"no group of this run has the picture {sha256[:12]}")
    return render(
        request,
        "groups/over_time.html",
        run=run,
        tab="Rollouts",
        sha256=sha256,
        groups=[_row(run, rules, index, line) for line in lines],
        chart=value_chart(
            [
                (line.step, line.mean, line.min, line.max)
                for line in lines
                if line.mean is not None and line.min is not None and line.max is not None
            ],
            "Rewards of this picture by step",
            "reward",
        ),
        is_cut=page.cursor is not None,
        num_visits=NUM_VISITS,
    )


def _lines(run: Run, group_id: str, step: str) -> list[IndexLine]:
    """Lines of the index about a group, the newest first.

    Raises:
        NotFoundError: There is none.
        InvalidInputError: The step is no number.
    """
    number = step_of(step)
    wanted = RolloutFilter(group_id=group_id, step_from=number, step_to=number)
    lines = RolloutIndex(run.path).page(wanted, limit=8).lines
    if not lines:
        where = "" if number is None else f" in step {number}"
        raise NotFoundError(f"no group {group_id!r}{where}: the list of rollouts has all there are")
    return lines


def _found(run: Run, rules: Rules, asked: Asked) -> dict[str, Any]:
    index = RolloutIndex(run.path)
    problems = list(asked.problems)
    try:
        page = index.page(asked.wanted, asked.sort, asked.cursor, NUM_GROUPS)
    except InvalidInputError as error:
        problems.append(f"{error.message}: this is the first page.")
        page = index.page(asked.wanted, asked.sort, None, NUM_GROUPS)
    return _listed(run, rules, page, problems)


def _kept(run: Run, rules: Rules, copied: CopyRule) -> dict[str, Any]:
    """The groups that a copy has: those of each step whose rewards differ most."""
    index = RolloutIndex(run.path)
    lines = [
        line
        for step in spread_steps(index)
        for line in index.page(
            RolloutFilter(step_from=step, step_to=step), "widest", limit=copied.groups_of_a_step
        ).lines
    ]
    page = IndexPage(lines=lines, cursor=None, scanned=len(lines), passed_over=0)
    return _listed(run, rules, page, [])


def spread_steps(index: RolloutIndex) -> list[int]:
    """Up to `COPIED_STEPS` steps, evenly spread over those whose answers a run keeps."""
    last = index.last_step
    if last is None:
        return []
    span = max(last - index.oldest_kept, 0)
    parts = max(1, min(COPIED_STEPS - 1, span))
    return sorted({last - span * part // parts for part in range(parts + 1)}, reverse=True)


def _listed(run: Run, rules: Rules, page: IndexPage, problems: list[str]) -> dict[str, Any]:
    index = RolloutIndex(run.path)
    return {
        "page": page,
        "problems": problems,
        "has_index": index.exists,
        "groups": [_row(run, rules, index, line) for line in page.lines],
    }


def _row(run: Run, rules: Rules, index: RolloutIndex, line: IndexLine) -> dict[str, Any]:
    """A line of the index with its group, or with why there is none."""
    try:
        return {"line": line, "view": GroupView(run, index.read_record(line), rules), "gone": ""}
    except (NotFoundError, InvalidInputError) as error:
        return {"line": line, "view": None, "gone": error.message}


def _opened(view: GroupView, opened: CompletionView) -> dict[str, Any]:
    """What the group's page says of the opened completion."""
    settings, record = view.rules.settings, view.record
    algorithm = settings.algorithm if settings else AlgorithmSettings()
    logprobs = record.policy_logprobs
    trainer = logprobs[opened.number] if opened.number < len(logprobs) else []
    ids = opened.completion.token_ids
    tokenizer = tokenizer_of(settings.model.path) if settings else None
    texts = token_texts(tokenizer, ids[:MAX_TOKENS]) if tokenizer else None
    advantages = advantages_of_tokens(record, opened.number, tokenizer)
    tokens = token_rows(opened.completion, trainer, advantages, algorithm, texts)
    graphs = opened.graphs()
    size = view.size
    drawn = {
        "width": size[0],
        "height": size[1],
        "picture": view.picture,
        "graphs": {name: graph.data(size) for name, graph in graphs.items()},
    }
    return {
        "opened": opened,
        "drawn": json.dumps(drawn, allow_nan=False),
        "counts": verdict_counts(graphs),
        "text": coloured_text(opened.completion.text, opened.explanation),
        "tokens": tokens,
        "num_clipped": sum(bool(token.clipped) for token in tokens),
        "has_texts": texts is not None,
        "algorithm": algorithm,
        "kind_of": kind_of,
        "reason_of": reason_of,
    }
