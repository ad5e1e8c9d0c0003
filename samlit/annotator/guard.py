"""Who may ask the annotator's server for what: a layer around the whole application."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

__all__ = ["LARGEST_BODY", "Guard", "loopback"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 16 * 2**20
"""Bytes of a request at most."""
COOKIE = "samlit"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    # Both are what a browser wants before it lets a page use threads.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


class Guard:
    """Refuses what no page of this server asks.

    Without a token the server is for this machine only, and answers to the names that this machine has for itself:
    a page elsewhere whose name was made to mean 127.0.0.1 (DNS rebinding) sends its own. With a token only who
    knows it gets anything. No other site's page may change anything, or read the answers (`Origin`, `Sec-Fetch-Site`,
    and a content type that browsers do not send elsewhere without asking).

    Args:
        app: What is guarded.
        token: What has to be known; None on loopback.
        largest: Bytes of a request at most.
    """

    def __init__(self, app: App, token: str | None = None, largest: int = LARGEST_BODY) -> None:
        self._app, self._token, self._largest = app, token, largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        if self._token is not None and (given := self._offered(scope)):
            if hmac.compare_digest(given.encode(), self._token.encode()):
                # Out of the address, which is in the history and on the screen, and into a cookie for this site alone.
                cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                await _say(answer, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])
            else:
                await _say(answer, 401, "the token is wrong: open the address that `samlit annotate` printed")
            return
        if refused := self._refusal(scope, headers):
            await _say(answer, *refused)
            return
        body = await self._body(headers, receive)
        if body is None:
            await _say(answer, 413, f"a request has at most {self._largest} bytes")
            return
        unread = [body]

        async def replay() -> MutableMapping[str, Any]:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, replay, answer)

    def _offered(self, scope: Scope) -> str:
        """A token in the address of the page."""
        if scope["path"] != "/" or scope["method"] != "GET":
            return ""
        return str(parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0])

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and line for a request that is not answered."""
        host = headers.get("host", "")
        if self._token is None:
            if not loopback(_name(host)):
                return 403, "this server is for this machine only: ask for 127.0.0.1 or localhost"
        elif not self._known(headers):
            return 401, "a token is needed: open the address that `samlit annotate` printed"
        if (origin := headers.get("origin")) is not None and origin not in (f"http://{host}", f"https://{host}"):
            return 403, "another site's page may ask nothing here"
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and scope["path"] != "/":
            return 403, "another site's page may ask nothing here"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "only GET and POST"
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            return 415, "a POST is of application/json"
        return None

    def _known(self, headers: dict[str, str]) -> bool:
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not given:
            try:
                cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            except CookieError:
                cookie = None
            given = cookie.value if cookie else ""
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """All of a request, or None where it is too large, whatever it says of its own length."""
        stated = headers.get("content-length", "0")
        if not stated.isdigit() or int(stated[:20]) > self._largest:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > self._largest:
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _say(send: Send, status: int, line: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", b"text/plain; charset=utf-8"), *(headers or [])],
        }
    )
    await send({"type": "http.response.body", "body": f"{line}\n".encode()})
