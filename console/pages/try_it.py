"""Try it: a picture in; its graph, the answer and, with a reference, its reward out."""

import asyncio
import json
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import File, Form, Request, Response
from pydantic import ValidationError

from console.groups.coloured_text import TextPart, coloured_text
from console.groups.rules import Rules, rules_of
from console.groups.view import term_bar, verdict_counts
from console.runs import Run, Runs, RunsOfConsole
from console.try_it import Question, Tried, curl_line, read_reference, try_picture
from console.web import page_router, render
from evaluation.report.pictures import data_uri
from services.errors import (
    InvalidInputError,
    SettingsError,
    SggError,
    UnavailableError,
)
from services.http.problems import invalid_input
from services.images import image_header
from services.printable import printable
from services.redis.client import connect
from services.redis.keys import RunKeys
from services.redis.registry import Registry
from services.schemas.scene_graphs import SceneGraphOptions

router = page_router()
_REDIS_S = 3.0
_MAX_TEXT = 20_000


@router.get("/try")
def page(request: Request, runs: RunsOfConsole, run: str = "") -> Response:
    """The form."""
    return render(request, "try_it/try_it.html", runs=runs.all(), chosen=run)


@router.post("/try")
async def ask(
    request: Request,
    runs: RunsOfConsole,
    run: Annotated[str, Form()],
    image: Annotated[bytes, File()] = b"",
    name: Annotated[str, Form()] = "",
    temperature: Annotated[str, Form()] = "",
    seed: Annotated[str, Form()] = "",
    constrain: Annotated[str, Form()] = "",
    reference: Annotated[str, Form()] = "",
) -> Response:
    """The answer, as a part of the page."""
    if "HX-Request" not in request.headers:  # which another site's page cannot send
        raise InvalidInputError("this answers the form of /try alone, which needs JavaScript")
    said = {"temperature": temperature, "seed": seed, "constrain": constrain}
    try:
        found = runs.named(run)
        rules = await asyncio.to_thread(rules_of, found)
        if rules.settings is None:
            raise SettingsError(" ".join(rules.notes))
        question = Question(
            name=name[:200],
            image=image,
            options=_options(said),
            reference=read_reference(reference),
        )
        _check_picture(image)
        servers = await _servers(runs, found, rules)
        tried = await try_picture(question, rules, servers)
    except UnavailableError as error:
        return render(request, "try_it/problem.html", message=error.message, run=found)
    except SggError as error:
        return render(request, "try_it/problem.html", message=error.message, run=None)
    shown = await asyncio.to_thread(_shown, question, tried, rules)
    return render(request, "try_it/result.html", run=found, **shown)


def _check_picture(image: bytes) -> None:
    if not image:
        raise InvalidInputError("there is no picture, or its file is empty: choose one")
    image_header(image)


def _options(said: dict[str, str]) -> SceneGraphOptions:
    given = {key: value.strip() for key, value in said.items() if value.strip()}
    try:
        return SceneGraphOptions.model_validate({**given, "text": True})
    except ValidationError as error:
        raise invalid_input(error.errors()) from error


async def _servers(runs: Runs, run: Run, rules: Rules) -> list[str]:
    """Addresses of the run's servers: those that Redis knows, then the one of the settings."""
    assert rules.settings is not None
    found: list[str] = []
    try:
        async with asyncio.timeout(_REDIS_S):
            redis = connect(await asyncio.to_thread(runs.redis, run))
            async with aclosing(redis):
                records = await Registry(redis, RunKeys(run.name)).servers()
                found = [record.url for record in records]
    except (SggError, TimeoutError):
        pass  # no Redis: the run is over
    return list(dict.fromkeys([*found, rules.settings.rollout.url]))


def _shown(question: Question, tried: Tried, rules: Rules) -> dict[str, Any]:
    graph, found = tried.graph, tried.explanation
    size = graph.width, graph.height
    drawn = {
        "width": size[0],
        "height": size[1],
        "picture": data_uri(question.image, size),
        "graphs": {name: each.data(size) for name, each in tried.graphs.items()},
    }
    text = graph.text or ""
    return {
        "tried": tried,
        "graph": graph,
        "found": found,
        "counts": verdict_counts(tried.graphs),
        "meanings": rules.meanings,
        "bar": term_bar(found.terms, found.max_total or 0.0) if found else "",
        "text": coloured_text(text, found) if found else [TextPart(printable(text[:_MAX_TEXT]))],
        "drawn": json.dumps(drawn, allow_nan=False),
        "curl": curl_line(
            tried.url, question, token=bool(rules.settings and rules.settings.data_token)
        ),
    }
