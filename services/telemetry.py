"""Logs of every process, and the metrics that every service has."""

import logging
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _OneLine(logging.Formatter):
    """Line breaks in a message are escaped: text from a request cannot forge a log line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return super().formatMessage(record).replace("\r", "\\r").replace("\n", "\\n")


def setup_logging(process_name: str, file: Path | None = None) -> None:
    """Send the logs of this process to stderr, one plain line each; a traceback follows its line.

    Args:
        process_name: Stands in every line, so that logs of several processes can be merged.
        file: Append to it instead: for a process that draws on its terminal.
    """
    handler = logging.StreamHandler(sys.stderr) if file is None else logging.FileHandler(file)
    handler.setFormatter(
        _OneLine(f"%(asctime)s %(levelname)-7s {process_name} %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per request otherwise


class HttpMetrics:
    """ASGI middleware: counts and times requests by route."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self._app = app
        self._requests = Counter(
            "http_requests", "Answered requests", ["method", "route", "status"], registry=registry
        )
        self._duration = Histogram(
            "http_request_duration_seconds", "Time to answer", ["route"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; the route's pattern is the label, so that unknown paths make no new series."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = _route(scope)
            method = scope["method"] if route != "unknown" else "any"
            self._requests.labels(method, route, status).inc()
            self._duration.labels(route).observe(time.perf_counter() - started)


def new_registry() -> CollectorRegistry:
    """A registry of its own for each app, with CPU, memory and open files of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def _route(scope: MutableMapping[str, Any]) -> str:
    return str(getattr(scope.get("route"), "path", "unknown"))
