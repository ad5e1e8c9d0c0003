"""Files from servers: once, whole, and known to be what they should be."""

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
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO

from samlit import cache
from samlit.errors import SamlitError, one_line
from samlit.weights.catalogue import Published

__all__ = ["Refused", "Report", "Wanted", "bring", "fetch"]

Report = Callable[[int, int, str], None]

TRIES, TIMEOUT, PIECE = 4, 30.0, 1 << 20


class Refused(SamlitError):
    """A server that gives a file to others, or gave it before, and not now."""


@dataclass(frozen=True)
class Wanted:
    """A file that is to be brought.

    Attributes:
        url: Where it is.
        path: Where it goes.
        size: Bytes; 0 where they are not known for certain.
        checksum: "sha256:HEX" or "md5:HEX", all of it or as many digits as are known.
        advice: What a person can do who does not get it.
        room: What a person can do where it does not fit.
        refused: What a person can do whom the server refuses it.
    """

    url: str
    path: Path
    size: int = 0
    checksum: str = ""
    advice: str = "bring the file from elsewhere and give its path"
    room: str = "name another folder by SAMLIT_CACHE"
    refused: str = ""

    @property
    def place(self) -> str:
        """The address without what signs it."""
        return self.url.partition("?")[0]


def fetch(published: Published, report: Report = lambda done, total, what: None, pause: float = 2.0) -> Path:
    """The file of published weights in the cache, downloaded if it is not there yet.

    Args:
        published: The weights.
        report: Told (done, total, what is being done), in MB.
        pause: Seconds before the second try; more before further ones.

    Raises:
        SamlitError: It cannot be had, or what arrives is not what was published; one line that says what to do.
    """
    path = cache.folder() / "weights" / published.file
    return bring(Wanted(published.url, path, published.size, published.checksum), report, pause)


def bring(wanted: Wanted, report: Report = lambda done, total, what: None, pause: float = 2.0) -> Path:
    """A file, downloaded if it is not there yet; it appears under its name when it is whole.

    What a broken connection left is gone on with, also by the next call.

    Args:
        wanted: The file.
        report: Told (done, total, what is being done), in MB.
        pause: Seconds before the second try; more before further ones.

    Raises:
        Refused: The server refuses it.
        SamlitError: It cannot be had, or what arrives is not what was published; one line that says what to do.
    """
    path = wanted.path
    if path.is_file():  # nothing but a whole and checked file ever got this name
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    piece = path.with_name(f".{path.name}.part")
    with _alone(path):
        if not path.is_file():  # another process may have brought it meanwhile
            _persist(wanted, piece, report, pause)
            if fault := _fault(wanted, piece):
                piece.unlink()
                raise SamlitError(
                    f"{path.name} from {wanted.place} is not what was published: {fault}; try again, and if that "
                    f"does not help {wanted.advice}"
                )
            os.replace(piece, path)
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time download a file; the system forgets the lock of a process that is gone."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _persist(wanted: Wanted, piece: Path, report: Report, pause: float) -> None:
    """Download until all of it is there or it is clear that it will not be."""
    what = f"downloading {wanted.path.name}"
    for attempt in range(TRIES):
        try:
            _go_on(wanted, piece, lambda done, total: report(done, total, what))
            return
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                piece.unlink(missing_ok=True)
                raise SamlitError(
                    f"there is no room for {wanted.path.name} in {piece.parent}: make some, or {wanted.room}"
                ) from error
            code = error.code if isinstance(error, urllib.error.HTTPError) else 0
            if code in (401, 403) and wanted.refused:
                raise Refused(f"{wanted.path.name}: the server refuses it ({code}): {wanted.refused}") from error
            if 400 <= code < 500 or attempt == TRIES - 1:
                raise SamlitError(
                    f"{wanted.path.name} cannot be downloaded from {wanted.place} ({_why(error)}): try again online "
                    f"(what came so far is kept), or {wanted.advice}"
                ) from error
            time.sleep(pause * 2**attempt)


def _go_on(wanted: Wanted, piece: Path, report: Callable[[int, int], None]) -> None:
    """Download from where the piece ends.

    Raises:
        OSError: The connection broke, or there was none.
        HTTPException: It broke within an answer.
    """
    have = piece.stat().st_size if piece.exists() else 0
    request = urllib.request.Request(wanted.url, headers={"User-Agent": "samlit"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if have == (wanted.size or _stated(error)):  # all of it was here already
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


def _fault(wanted: Wanted, path: Path) -> str:
    """How a file differs from what was published; empty where it does not, as far as that is known."""
    size = path.stat().st_size
    if wanted.size and size != wanted.size:
        return f"it has {size:,} bytes and should have {wanted.size:,}"
    kind, _, digits = wanted.checksum.partition(":")
    if not digits:
        return ""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, kind).hexdigest()
    if found.startswith(digits):
        return ""
    return f"its {kind} is {found[: len(digits)]} and should be {digits}"


def _stated(error: urllib.error.HTTPError) -> int:
    """How large a file is, as a server says that refuses a range of it; -1 where it does not."""
    size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(size) if size.isdigit() else -1


def _why(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return one_line(reason if isinstance(reason, BaseException) else error)
