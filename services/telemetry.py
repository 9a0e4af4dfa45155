"""Logs of every process, and the metrics and spans of every service."""

import logging
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.host.environment import environment_value
from services.printable import OneLine, for_people

_LOGGERS = (
    "torch._library.triton",
    "vllm.config.vllm",
    "vllm.platforms.cpu",
    "vllm.triton_utils.importing",
)
_FOLLOWS = (
    "Enforce eager set",
    "Inductor compilation was disabled by user settings",
    "TORCH_COMPILE_DISABLE is set",
    "Triton is not installed",
    "Triton not available",
    "Triton not installed",
)
"""What these say at every start follows from the settings, or from a machine without a GPU."""


def _worth_reading(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_FOLLOWS)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what is stderr at the moment: rich replaces it while it shows a live table."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def setup_logging(
    process_name: str,
    file: Path | None = None,
    *,
    beside: Path | None = None,
    terminal: TextIO | None = None,
) -> None:
    """Send the logs of this process to stderr, one plain line each; a traceback follows its line.

    Args:
        process_name: Stands in every line, so that logs of several processes can be merged.
        file: Append to it instead: for a process that draws on its terminal.
        beside: Append to it too; then only this has what libraries say, unless something failed.
        terminal: In place of stderr.
    """
    to_people = _Stderr() if terminal is None else logging.StreamHandler(terminal)
    handlers: list[logging.Handler] = [to_people if file is None else logging.FileHandler(file)]
    if beside is not None:
        handlers[0].addFilter(for_people)
        handlers.append(logging.FileHandler(beside))
    for handler in handlers:
        handler.setFormatter(
            OneLine(f"%(asctime)s %(levelname)-7s {process_name} %(name)s: %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    for name in ("httpx", "faster_coco_eval"):  # a line a request, and 20 for each threshold of AP
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_worth_reading)
    # At every picture; vLLM takes a run's limits by these names alone.
    warnings.filterwarnings("ignore", "Passing `min_pixels` and `max_pixels`", FutureWarning)


@contextmanager
def own_terminal(process_name: str, beside: Path | None) -> Iterator[None]:
    """Keep a terminal for this process's own log lines, until the end of the block.

    Whatever else libraries, and processes that they start, write on stdout and stderr is appended
    to a file, which has these lines too. Where nobody looks at a terminal, all goes where it went.

    Args:
        process_name: As `setup_logging`.
        beside: The file; None where none can be written.
    """
    if beside is None or not os.isatty(2):
        setup_logging(process_name)
        yield
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    shown = [number for number in (1, 2) if os.isatty(number)]
    kept = {number: os.dup(number) for number in shown}
    with beside.open("ab", buffering=0) as target, os.fdopen(os.dup(2), "w") as terminal:
        setup_logging(process_name, beside=beside, terminal=terminal)
        logging.getLogger(__name__).info("what libraries say goes to %s", beside)
        for number in shown:
            os.dup2(target.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            setup_logging(process_name)


def log_beside(logs: Path, name: str) -> Path | None:
    """A file for `setup_logging` to append to, in a folder that is made.

    None where somebody keeps stderr in a file already: the launcher, a Slurm job, a shell.
    """
    if environment_value("SGG_JOB_FOLDER") or stat.S_ISREG(os.fstat(2).st_mode):
        return None
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{name}.log"


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
            route = str(getattr(scope.get("route"), "path", "unknown"))
            method = scope["method"] if route != "unknown" else "any"
            self._requests.labels(method, route, status).inc()
            self._duration.labels(route).observe(time.perf_counter() - started)


class Tracing:
    """OpenTelemetry spans of one service, sent as OTLP over HTTP.

    Without an endpoint nothing is traced, and OpenTelemetry is not even imported.

    Example: `with tracing.span("score"): tracing.annotate(num_groups=8)`
    """

    def __init__(self, service: str, endpoint: str | None) -> None:
        """Connects with the first spans; a collector that is away costs spans and nothing else.

        Args:
            service: `service.name` of every span.
            endpoint: Base URL of the collector, such as `http://127.0.0.1:4318`.
        """
        self._provider = _tracer_provider(service, endpoint) if endpoint else None

    def trace_requests(self, app: Starlette) -> None:
        """A span for each request, in the trace that the caller's `traceparent` names.

        Call it last: its middleware goes around all others.
        """
        if self._provider is None:
            return
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app.add_middleware(
            OpenTelemetryMiddleware,
            excluded_urls="/healthz$,/readyz$,/metrics$",
            tracer_provider=self._provider,
            exclude_spans=["receive", "send"],  # one more span for each piece of a body
        )

    def span(
        self, name: str, *, parent: str | None = None, links: Sequence[str] = ()
    ) -> AbstractContextManager[Any]:
        """A span under the current one.

        Args:
            name: The span's name.
            parent: `traceparent` of the span to be under instead.
            links: `traceparent` of spans that it also belongs to.
        """
        if self._provider is None:
            return nullcontext()
        tracer = self._provider.get_tracer(__name__)
        started: AbstractContextManager[Any] = tracer.start_as_current_span(
            name, context=_context(parent), links=_links(links)
        )
        return started

    def begin(self, name: str, **attributes: str | int | float) -> "OpenSpan | None":
        """A span at the root of a new trace, ended by hand; None where nothing is traced."""
        if self._provider is None:
            return None
        from opentelemetry.context import Context

        tracer = self._provider.get_tracer(__name__)
        return OpenSpan(tracer.start_span(name, context=Context(), attributes=attributes))

    def annotate(self, **attributes: str | int | float) -> None:
        """Write attributes on the current span."""
        if self._provider is not None:
            from opentelemetry.trace import get_current_span

            get_current_span().set_attributes(attributes)

    def close(self) -> None:
        """Send what is left; at most some seconds where the collector is away."""
        if self._provider is not None:
            self._provider.shutdown()


class OpenSpan:
    """A span that outlasts the function that began it, and is nobody's current one."""

    def __init__(self, span: Any) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        """Its W3C name, for spans of other processes below it."""

    def end(self, **attributes: str | int | float) -> None:
        """Send it, with attributes more."""
        self._span.set_attributes(attributes)
        self._span.end()


def trace_headers() -> dict[str, str]:
    """`traceparent` of the current span, for a request to another service.

    Empty where no code of this process has imported OpenTelemetry: there can be no span then.
    """
    headers: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.propagate import inject

        inject(headers)
    return headers


def new_registry() -> CollectorRegistry:
    """A registry of its own for each app, with CPU, memory and open files of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def _tracer_provider(service: str, endpoint: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _context(traceparent: str | None) -> Any:
    """None stands for the current one."""
    if traceparent is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, context=Context())


def _links(traceparents: Sequence[str]) -> list[Any]:
    from opentelemetry.trace import Link, get_current_span

    return [Link(get_current_span(_context(name)).get_span_context()) for name in traceparents]
