"""The page of HTTP routes, by the services' OpenAPI documents."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from docs.hooks.fields import kind, prose, table
from monitor_service.app import Monitor
from reward_service.service.app import build_app
from rollout_service.fake.engine import FakeEngine
from rollout_service.http.app import RolloutProcess
from services.settings import Settings

Responses = Mapping[str, Mapping[str, Any]]
"""By status."""

_START = """# HTTP services

```
curl -s http://127.0.0.1:8200/v1/policy -H "Authorization: Bearer $SGG_DATA_TOKEN"
```

asks a rollout server which version of the policy it serves. Three services answer over HTTP, and
each has its OpenAPI document at `/openapi.json`, of which a copy is linked below, and a page to try
it [in a browser](../operations.md#in-a-browser) at `/docs`. Where a run has tokens,
`/healthz`, `/readyz`, `/metrics`, `/v1/targets` and `/v1/proof` ask for none, the routes under
`/v1/weights` for the admin token, and all others for the data token. From 400 on an answer is a
[problem](#problem), whose `detail` says what to do. [Rollout](../rollout.md) and
[rewards](../rewards.md) explain the routes with examples, and
[operations](../operations.md#what-a-service-takes) has the limits of all services.
"""


def service_apps() -> dict[str, FastAPI]:
    """The services by name, none of them started."""
    settings = Settings.model_validate({"model": {"path": "model"}, "data": {"train": "data"}})
    engine = FakeEngine(tokens_per_s=1, max_model_len=1024)
    return {
        "rollout": RolloutProcess(settings, lambda: engine).app,
        "reward": build_app(settings),
        "monitor": Monitor(settings).app,
    }


def page(apps: Mapping[str, FastAPI]) -> str:
    """The Markdown: routes of each service, then the messages of all."""
    everywhere = _everywhere(apps["monitor"])
    parts = [_START, "## Every route\n", _answers(everywhere), ""]
    messages: dict[str, Any] = {}
    for name, app in apps.items():
        document = app.openapi()
        messages |= document["components"]["schemas"]
        title = document["info"]["title"].capitalize()
        parts.append(f"## {title}\n\n[OpenAPI document]({name}.openapi.json)\n")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                anchor = f"{name}-{operation['operationId']}"
                parts.append(f"### `{method.upper()} {path}` {{ #{anchor} }}\n")
                parts += _operation(operation, everywhere)
    parts.append("## Messages\n")
    for name, schema in sorted(messages.items()):
        parts += _message(name, schema)
    return "\n".join(parts)


def _everywhere(app: FastAPI) -> Responses:
    """Errors that each route of each service may give: those of the simplest one."""
    responses = app.openapi()["paths"]["/healthz"]["get"]["responses"]
    return {status: answer for status, answer in responses.items() if status != "200"}


def _operation(operation: Mapping[str, Any], everywhere: Responses) -> Iterator[str]:
    yield prose(f"{operation['summary']}.\n\n{operation.get('description', '')}") + "\n"
    parameters = operation.get("parameters", ())
    if parameters:
        properties = {p["name"]: p["schema"] for p in parameters}
        required = [p["name"] for p in parameters if p["required"]]
        yield table({"properties": properties, "required": required}) + "\n"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Body: {_content(media, content)}\n"
        if "example" in content:
            yield f"```json\n{json.dumps(content['example'], indent=2)}\n```\n"
    answers = operation["responses"].items()
    yield _answers({name: one for name, one in answers if one != everywhere.get(name)}) + "\n"


def _answers(responses: Responses) -> str:
    rows = ["| status | meaning | answer |", "|---|---|---|"]
    for status, answer in responses.items():
        kinds = ", ".join(_content(*item) for item in answer.get("content", {}).items())
        rows.append(f"| {status} | {prose(answer['description'])} | {kinds} |")
    return "\n".join(rows)


def _content(media: str, content: Mapping[str, Any]) -> str:
    schema = content.get("schema")
    return kind(schema) if schema and "$ref" in schema else f"`{media}`"


def _message(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield prose(schema.get("description", "")) + "\n"
    if "properties" in schema:
        yield table(schema) + "\n"
