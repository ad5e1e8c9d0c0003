"""Published weights into the cache: once, whole, and known to be what they should be."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO

from samlit import cache
from samlit.catalogue import Published
from samlit.errors import SamlitError, one_line

__all__ = ["fetch"]

Report = Callable[[int, int, str], None]

TRIES, TIMEOUT, PIECE = 4, 30.0, 1 << 20


def fetch(published: Published, report: Report = lambda done, total, what: None, pause: float = 2.0) -> Path:
    """The file of published weights in the cache, downloaded if it is not there yet.

    What a broken connection left is gone on with, also by the next call.

    Args:
        published: The weights.
        report: Told (done, total, what is being done), in MB.
        pause: Seconds before the second try; more before further ones.

    Raises:
        SamlitError: It cannot be had, or what arrives is not what was published; one line that says what to do.
    """
    path = cache.folder() / "weights" / published.file
    if path.is_file():  # nothing but a whole and checked file ever got this name
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    piece = path.with_name(f".{path.name}.part")
    with _alone(path):
        if not path.is_file():  # another process may have brought it meanwhile
            _persist(published, piece, report, pause)
            if fault := _fault(published, piece):
                piece.unlink()
                raise SamlitError(
                    f"{published.file} from {published.url} is not what was published: {fault}; try again, and if that "
                    "does not help bring the file from elsewhere and give its path"
                )
            os.replace(piece, path)
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time download a file; the system forgets the lock of a process that is gone."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _persist(published: Published, piece: Path, report: Report, pause: float) -> None:
    """Download until all of it is there or it is clear that it will not be."""
    what = f"downloading {published.file}"
    for attempt in range(TRIES):
        try:
            _go_on(published, piece, lambda done, total: report(done, total, what))
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                piece.unlink(missing_ok=True)
                raise SamlitError(
                    f"there is no room for {published.file} in {piece.parent}: make some, or name another folder by "
                    "SAMLIT_CACHE"
                ) from error
            final = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
            if final or attempt == TRIES - 1:
                raise SamlitError(
                    f"{published.file} cannot be downloaded from {published.url} ({_why(error)}): try again online "
                    "(what came so far is kept), or bring the file from elsewhere and give its path"
                ) from error
            time.sleep(pause * 2**attempt)


def _go_on(published: Published, piece: Path, report: Callable[[int, int], None]) -> None:
    """Download from where the piece ends.

    Raises:
        OSError: The connection broke, or there was none.
        HTTPException: It broke within an answer.
    """
    have = piece.stat().st_size if piece.exists() else 0
    request = urllib.request.Request(published.url, headers={"User-Agent": "samlit"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if published.size and have == published.size:  # all of it was here already
            return
        piece.unlink()  # more than there is: not a piece of this file
        raise OSError("what an earlier try left was no part of it") from error
    with answer:
        # A file: address, and servers that know no ranges, begin at the beginning.
        more = have if getattr(answer, "status", None) == 206 else 0
        total = more + int(answer.headers.get("Content-Length") or 0)
        with piece.open("ab" if more else "wb") as stream:
            done = _copy(answer, stream, more, lambda done: report(done >> 20, total >> 20))
    if total > more and done < total:
        raise OSError(f"the connection broke after {done:,} of {total:,} bytes")


def _copy(source: IO[bytes], target: IO[bytes], done: int, report: Callable[[int], None]) -> int:
    while data := source.read(PIECE):
        target.write(data)
        done += len(data)
        report(done)
    target.flush()
    os.fsync(target.fileno())
    return done


def _fault(published: Published, path: Path) -> str:
    """How a file differs from what was published; empty where it does not, as far as that is known."""
    size = path.stat().st_size
    if published.size and size != published.size:
        return f"it has {size:,} bytes and should have {published.size:,}"
    kind, _, wanted = published.checksum.partition(":")
    if not wanted:
        return ""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    if found.startswith(wanted):
        return ""
    return f"its {kind} is {found[: len(wanted)]} and should be {wanted}"


def _why(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return one_line(reason if isinstance(reason, BaseException) else error)
