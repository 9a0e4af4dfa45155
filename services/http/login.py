"""`/login` and `/logout`: a person types a token once, and the browser keeps a cookie in its place.

The cookie is a proof of the token with a date (`services.http.proof.login_cookie`), for scripts of
a page out of reach (HttpOnly), and sent by no page of another site (SameSite=Strict). It is good
for all services with the same token on the same host, since browsers do not tell ports apart. The
guard decides what a cookie may do.
"""

import asyncio
import re
import time
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from services.errors import SlowRequestError, TooLargeError
from services.http.guard import BODY_S, LOGIN_PATH, LOGOUT_PATH, Tokens
from services.http.pages import page
from services.http.proof import login_cookie

LOGIN_S = 12 * 3600
"""A login is good for so long."""
_MAX_BYTES = 8192
"""A form's: anybody may send one."""
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")
"""A path of this service: `//host` and `/\\host` are addresses of others."""


def add_login(app: FastAPI, tokens: Tokens) -> None:
    """Serve both pages.

    Args:
        app: Its title is the form's.
        tokens: The guard's.
    """

    @app.get(LOGIN_PATH, include_in_schema=False)
    async def form(next: str = "/") -> Response:
        return page("login.html", heading=app.title, next=_local(next), wrong=False)

    @app.post(LOGIN_PATH, include_in_schema=False)
    async def login(request: Request) -> Response:
        fields = parse_qs(await _small_body(request))
        place = _local(fields.get("next", ["/"])[0])
        token = tokens.known(fields.get("token", [""])[0].strip())
        if token is None:
            return page("login.html", heading=app.title, next=place, wrong=True, status=401)
        answer = RedirectResponse(place, status_code=303)
        name, value = login_cookie(token, int(time.time()) + LOGIN_S)
        answer.set_cookie(name, value, max_age=LOGIN_S, httponly=True, samesite="strict")
        return answer

    @app.post(LOGOUT_PATH, include_in_schema=False)
    async def logout() -> Response:
        answer = RedirectResponse(LOGIN_PATH, status_code=303)
        for name in tokens.cookie_names:
            answer.delete_cookie(name, httponly=True, samesite="strict")
        return answer


async def _small_body(request: Request) -> str:
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise TooLargeError(f"the form is over {_MAX_BYTES} bytes")
    except TimeoutError as error:
        raise SlowRequestError(f"the form did not come within {BODY_S:g} s") from error
    return body.decode("latin-1")


def _local(place: str) -> str:
    return place if _LOCAL.fullmatch(place) else "/"
