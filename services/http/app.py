"""The frame of every HTTP service: health, metrics, limits, tokens, problem details, serving.

Typical use:

    app = create_app(title="reward service", body_limit_bytes=4_000_000, readiness=lambda: None,
                     data_token=token)
    app.post("/v1/rewards")(handler)      # handlers raise errors of services.errors
    serve(app, "http://127.0.0.1:8100")
"""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from services.errors import SettingsError, UnavailableError
from services.host.addresses import host_and_port, is_loopback
from services.host.ports import listen
from services.http.docs_page import add_docs
from services.http.guard import CheckedRoute, RequestGuard, Tokens
from services.http.login import add_login
from services.http.openapi import DescribedApp, answer
from services.http.pages import add_files
from services.http.problems import add_problem_handlers
from services.http.protocol import GuardedProtocol
from services.settings.secrets import MIN_CHARACTERS, is_weak
from services.telemetry import HttpMetrics, new_registry

logger = logging.getLogger(__name__)

_DRAIN_S = 30
"""Requests in flight at a SIGTERM have this long to finish."""
_HEALTH = "health"
_METRICS = """# HELP http_requests_total Answered requests
# TYPE http_requests_total counter
http_requests_total{method="GET",route="/healthz",status="200"} 3.0
"""
HELD_BODIES = 64
"""All bodies that a service holds are together as large as so many of the largest."""


class Liveness(BaseModel):
    """Answer of `GET /healthz`."""

    status: str
    service: str


class Readiness(BaseModel):
    """Answer of `GET /readyz`."""

    ready: bool
    reason: str | None
    """Why not."""


def create_app(
    *,
    title: str,
    readiness: Callable[[], str | None],
    body_limit_bytes: int,
    held_limit_bytes: int | None = None,
    url: str = "",
    description: str = "",
    tags: Mapping[str, str] | None = None,
    data_token: str | None = None,
    admin_token: str | None = None,
    admin_paths: Sequence[str] = (),
    streamed_paths: Sequence[str] = (),
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> DescribedApp:
    """A FastAPI app with health, metrics, a docs page, and the project's limits and errors.

    `GET /` leads to `/docs` unless the app has a route there. With tokens a browser logs in.

    Args:
        title: The service's name, in its OpenAPI page.
        readiness: Called by `/readyz`; why the service cannot serve now, or None when it can.
        body_limit_bytes: Larger bodies are refused with 413 before they are read.
        held_limit_bytes: While all bodies that are at work together are larger, more are refused
            with 503; None is `HELD_BODIES` of the largest.
        url: Where it listens: the host in it is a name that requests may be sent to.
        description: What the service does, in sentences, for its docs page.
        tags: Groups of routes on that page, each with a sentence.
        data_token: Asked for on every path but health and metrics; None leaves them open.
        admin_token: Asked for at and under `admin_paths`; the data token where it is None.
        admin_paths: Path prefixes such as `/v1/weights`.
        streamed_paths: Path prefixes whose bodies go unread to the handler, which limits them.
        lifespan: Start and stop of what the service runs beside HTTP.

    Returns:
        The app. `app.state.registry` is its Prometheus registry.
    """
    # No redirects: they would be built from what a request says about its host.
    app = DescribedApp(
        title=title,
        description=description,
        openapi_tags=[
            {"name": name, "description": text}
            for name, text in {**(tags or {}), _HEALTH: "Asked by who watches the service."}.items()
        ],
        version=version("sgg-rl"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = CheckedRoute
    tokens = Tokens(data=data_token, admin=admin_token, admin_paths=admin_paths)
    app.token_needed = tokens.are_needed
    app.state.registry = new_registry()
    needed = {"SGG_DATA_TOKEN": data_token} | (
        {"SGG_ADMIN_TOKEN": admin_token} if admin_paths else {}
    )
    app.state.weak_tokens = [name for name, token in needed.items() if not token or is_weak(token)]
    app.state.is_stopping = lambda: False  # what streams for as long as it is read asks this
    add_problem_handlers(app)
    _add_health(app, readiness)
    _add_pages(app, tokens)
    app.add_middleware(
        RequestGuard,
        tokens=tokens,
        streamed_paths=streamed_paths,
        body_limit_bytes=body_limit_bytes,
        held_limit_bytes=held_limit_bytes or HELD_BODIES * body_limit_bytes,
        host_names=_host_names(url),
    )
    app.add_middleware(HttpMetrics, registry=app.state.registry)  # added last: sees refusals too
    return app


def _add_health(app: FastAPI, readiness: Callable[[], str | None]) -> None:
    alive = {"status": "alive", "service": app.title}
    busy = {"ready": False, "reason": "the model is loading"}

    @app.get("/healthz", tags=[_HEALTH], responses=answer("It is.", alive))
    async def healthz() -> Liveness:
        """Say that the process is alive."""
        return Liveness(status="alive", service=app.title)

    unready = {"model": Readiness} | answer("It cannot, and says why.", busy, status=503)[503]
    able = answer("It can.", {"ready": True, "reason": None})

    @app.get("/readyz", tags=[_HEALTH], responses=able | {503: unready})
    async def readyz(response: Response) -> Readiness:
        """Say whether the service can serve now."""
        reason = readiness()
        response.status_code = 200 if reason is None else 503
        return Readiness(ready=reason is None, reason=reason)

    numbers = answer("Prometheus's text format.", _METRICS, media="text/plain")

    @app.get("/metrics", tags=[_HEALTH], response_class=PlainTextResponse, responses=numbers)
    async def metrics() -> Response:
        """Give the service's numbers to Prometheus."""
        return Response(generate_latest(app.state.registry), media_type=CONTENT_TYPE_LATEST)


def _add_pages(app: FastAPI, tokens: Tokens) -> None:
    add_files(app)
    add_docs(app, log_out=tokens.are_needed)
    if tokens.are_needed:
        add_login(app, tokens)


def serve(app: FastAPI, url: str) -> None:
    """Serve until SIGTERM (returns) or SIGINT (KeyboardInterrupt); requests in flight finish first.

    Args:
        app: Made by `create_app`.
        url: Where to listen, `http://host:port`; port 0 takes a free one.

    Raises:
        SettingsError: The URL is malformed, the port is taken, or the host is not loopback and a
            token is missing or short.
        UnavailableError: The app's `lifespan` failed.
        KeyboardInterrupt: After a SIGINT.
    """
    with bind(app, url) as listener:
        host, port = listener.getsockname()[:2]
        logger.info("%s listens on http://%s:%d", app.title, host, port)
        server = uvicorn.Server(server_config(app))
        app.state.is_stopping = lambda: server.should_exit
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal again once it has drained: then SIGTERM must end us with 0.
            signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run(sockets=[listener])
        except SystemExit as error:  # uvicorn's answer to a lifespan that fails
            raise UnavailableError(f"{app.title} did not start; its log says why") from error


def server_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves every service: one protocol, with `services.http.protocol`'s limits."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


def bind(app: FastAPI, url: str) -> socket.socket:
    """A listening socket at `url`; `serve` says what is refused.

    Bound before the service loads anything, so that a taken port is known within milliseconds.
    """
    host, port = host_and_port(url)
    weak: list[str] = getattr(app.state, "weak_tokens", [])  # an app that asks for none has none
    if weak and not is_loopback(host):
        raise SettingsError(
            f"{app.title} would listen on {host}, beyond this machine, without "
            f"{' and '.join(weak)} of {MIN_CHARACTERS} characters or more: set them (or token "
            "files in [security]), or use 127.0.0.1"
        )
    return listen(host, port, name=app.title)


def _host_names(url: str) -> frozenset[str]:
    """This machine's names, and the one in the service's URL."""
    names = {urlsplit(url).hostname or "", socket.gethostname()}
    if not is_loopback(urlsplit(url).hostname or "localhost"):
        names.add(socket.getfqdn())  # asks the network's name service, which takes its time
    return frozenset(name.lower() for name in names)
