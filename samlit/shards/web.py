"""Files at http(s) addresses, by ranges; proxies and redirections as everywhere else."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from samlit.faults import Damaged
from samlit.shards import blobs
from samlit.shards.blobs import FinalError, Remote, persistent
from samlit.shards.tars import Stamp

__all__ = ["Web"]

WHOLE = 64 << 20
"""Up to this byte, a server that gives no ranges is read from the start."""


class Web(Remote):
    """A file at an http(s) address."""

    def stamp(self) -> Stamp:
        """Its size, and the server's tag of it or the time of its last change."""

        def ask() -> Stamp:
            # Not HEAD: signed links are often signed for GET alone.
            with _answer(self, 0, 1) as answer:
                whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status_code == 200:
                    whole = answer.headers.get("Content-Length", "")
                if not whole.isdigit():
                    raise FinalError("the server does not say how large it is")
                return int(whole), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""

        return persistent(self, ask)

    def text(self) -> bytes:
        """All of it, for what is small."""

        def ask() -> bytes:
            with _answer(self) as answer:
                return b"".join(_body(answer))

        return persistent(self, ask)

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        with _answer(self, at, size) as answer:
            skip = 0
            if answer.status_code == 200:  # a server without ranges begins at the beginning
                if at + size > WHOLE:
                    told = "the server gives no parts of files; fetch the shards first (`samlit shards get`, or a copy)"
                    raise FinalError(told)
                skip = at
            left = size
            for piece in _body(answer):
                kept = piece[skip : skip + left]
                skip, left = max(0, skip - len(piece)), left - len(kept)
                yield kept
                if not left:
                    return


def _answer(what: Web, at: int = 0, size: int = 0) -> Any:
    """A server's answer, not yet read, for a range or for all of a file."""
    import requests

    headers = {"Accept-Encoding": "identity", "User-Agent": "samlit"}
    if size:
        headers["Range"] = f"bytes={at}-{at + size - 1}"
    try:
        answer = _session().get(what.url, headers=headers, stream=True, timeout=blobs.TIMEOUT)
    except requests.RequestException as error:
        raise _plain(error) from error
    code = answer.status_code
    if code in (200, 206):
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if code == 200 or (start and int(start[1]) == at):
            return answer
        answer.close()
        raise FinalError("the server answers with another range than was asked for")
    answer.close()
    if code == 416:
        raise Damaged("changed", "the shard is shorter than its index says", shard=what.name)
    if code in (404, 410):
        raise FileNotFoundError(f"there is no such file ({code})")
    if code in (401, 403):
        raise PermissionError(f"the server refuses it ({code}); links of SA-1B expire: fetch a new list of them")
    if 400 <= code < 500 and code not in (408, 425, 429):
        raise FinalError(f"the server refuses it ({code} {answer.reason})")
    raise ConnectionError(f"the server answers {code} {answer.reason}")


def _body(answer: Any) -> Iterator[bytes]:
    """What follows an answer's headers, while it comes fast enough."""
    import requests

    begun, done = time.monotonic(), 0
    try:
        for piece in answer.iter_content(blobs.PIECE):
            yield piece
            done += len(piece)
            if time.monotonic() - begun > blobs.TIMEOUT + done / blobs.SLOWEST:
                raise TimeoutError(f"{done:,} bytes in {time.monotonic() - begun:.0f} s")
    except requests.RequestException as error:
        raise _plain(error) from error


def _plain(error: Exception) -> OSError:
    """What a library of three layers says, without the layers, addresses and signatures."""
    text = str(error)
    if "timed out" in text:
        return TimeoutError(f"nothing came for {blobs.TIMEOUT:g} s")
    known = re.search(r"Connection refused|Name or service not known|IncompleteRead|certificate verify failed", text)
    return ConnectionError(known[0] if known else f"the connection broke ({type(error).__name__})")


_own = threading.local()


def _session() -> Any:
    """A thread's own connections, which stay open from one range to the next."""
    import requests

    if getattr(_own, "process", None) != os.getpid():
        _own.session, _own.process = requests.Session(), os.getpid()
    return _own.session
