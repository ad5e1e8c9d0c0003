"""Files of bytes, here or on a server, read by ranges: with timeouts, tried again, and gone on with where they broke.

Addresses are http(s), which the standard ways of proxies and redirections are honoured for, and s3, gs, hf, az through
fsspec. Nothing here runs a program.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from samlit.errors import one_line
from samlit.faults import Damaged
from samlit.tars import Stamp

__all__ = ["Blob", "Cloud", "Local", "Web", "blob", "is_address", "listed"]

T = TypeVar("T")

TRIES = 5
"""How often in a row a read may bring nothing before it is given up."""
PAUSE = 1.0
"""Seconds before the second try; twice as many before each further one."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
SLOWEST = 1 << 13
"""Bytes a second; a connection that is slower for longer than the timeout counts as broken, too."""
WHOLE = 64 << 20
"""Up to this byte, a server that gives no ranges is read from the start."""
PIECE = 1 << 16

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs"}
"""By protocol, the package that fsspec needs for it."""
KNOWN = ("http", "https", *PACKAGES, "memory")


class _FinalError(OSError):
    """An answer that will be the same however often it is asked for."""


_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, _FinalError)


class Blob(ABC):
    """A file that is read by ranges: small to pickle, and used by many threads.

    Args:
        url: Its address, or its path.
        name: Where a list calls it something else than its address does.
    """

    def __init__(self, url: str, name: str = "") -> None:
        self.url, self._name = url, name

    @property
    def place(self) -> str:
        """Its address without what signs it, which is another one each time."""
        return self.url.partition("?")[0].partition("#")[0]

    @property
    def name(self) -> str:
        """Its own name, without folders."""
        return self._name or unquote(self.place.rstrip("/").rpartition("/")[2])

    @property
    def known_as(self) -> str:
        """What it is remembered by: the address of a file in a list may be another one in the next list."""
        return self._name or self.place

    @abstractmethod
    def stamp(self) -> Stamp:
        """What tells it from another file of its name.

        Raises:
            FileNotFoundError: It is not there.
            Damaged: It cannot be reached.
        """

    @abstractmethod
    def read(self, at: int, size: int) -> bytes:
        """The bytes of a range, all of which must be there.

        Raises:
            Damaged: They cannot be had.
        """


class Local(Blob):
    """A file on this machine."""

    @property
    def place(self) -> str:
        """Its path."""
        return self.url

    @property
    def name(self) -> str:
        """Its own name."""
        return Path(self.url).name

    def stamp(self) -> Stamp:
        """Its size and the time of its last change."""
        state = os.stat(self.url)
        return state.st_size, state.st_mtime_ns

    def read(self, at: int, size: int) -> bytes:
        """The bytes of a range."""
        try:
            with open(self.url, "rb", buffering=0) as stream:
                data = os.pread(stream.fileno(), size, at)
        except FileNotFoundError as error:
            raise Damaged("unreadable", "the shard is gone", shard=self.name) from error
        except OSError as error:
            raise Damaged("unreadable", f"the shard cannot be read: {error.strerror}", shard=self.name) from error
        if len(data) < size:
            raise Damaged("changed", "the shard is shorter than its index says", shard=self.name)
        return data


class _Remote(Blob):
    """A file on a server."""

    @abstractmethod
    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        """The bytes of a range, as they come; an OSError where the connection breaks."""

    def read(self, at: int, size: int) -> bytes:
        """The bytes of a range; what came before a connection broke is not read again."""
        data = bytearray()
        failures = 0
        while len(data) < size:
            before = len(data)
            try:
                for piece in self._pieces(at + before, size - before):
                    data += piece
                if len(data) < size:
                    raise ConnectionError(f"only {len(data):,} of {size:,} bytes came")
            except _FINAL as error:
                raise Damaged("unreadable", f"{self.place}: {one_line(error)}", shard=self.name) from error
            except OSError as error:
                failures = 1 if len(data) - before > PIECE else failures + 1
                if failures >= TRIES:
                    told = f"{self.place}: given up after {failures} tries: {one_line(error)}"
                    raise Damaged("unreadable", told, shard=self.name) from error
                time.sleep(_pause(failures))
        return bytes(data[:size])


def _pause(failures: int) -> float:
    """Seconds to wait; not the same ones for all processes, which would come back at once."""
    return PAUSE * 2.0 ** (failures - 1) * random.uniform(0.75, 1.25)


def _persistent(what: Blob, ask: Callable[[], T]) -> T:
    """Ask a server until it answers.

    Raises:
        FileNotFoundError: It says that there is no such thing.
        Damaged: It refuses, or never answers.
    """
    for failures in range(1, TRIES + 1):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, _FINAL) or failures == TRIES:
                raise Damaged("unreadable", f"{what.place}: {one_line(error)}", shard=what.name) from error
            time.sleep(_pause(failures))
    raise AssertionError


class Web(_Remote):
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
                    raise _FinalError("the server does not say how large it is")
                return int(whole), answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""

        return _persistent(self, ask)

    def text(self) -> bytes:
        """All of it, for what is small.

        Raises:
            FileNotFoundError: It is not there.
            Damaged: It cannot be reached.
        """

        def ask() -> bytes:
            with _answer(self) as answer:
                return b"".join(_body(answer))

        return _persistent(self, ask)

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        with _answer(self, at, size) as answer:
            skip = 0
            if answer.status_code == 200:  # a server without ranges begins at the beginning
                if at + size > WHOLE:
                    told = "the server gives no parts of files; fetch the shards first (`samlit shards get`, or a copy)"
                    raise _FinalError(told)
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
        answer = _session().get(what.url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:
        raise _plain(error) from error
    code = answer.status_code
    if code in (200, 206):
        start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if code == 200 or (start and int(start[1]) == at):
            return answer
        answer.close()
        raise _FinalError("the server answers with another range than was asked for")
    answer.close()
    if code == 416:
        raise Damaged("changed", "the shard is shorter than its index says", shard=what.name)
    if code in (404, 410):
        raise FileNotFoundError(f"there is no such file ({code})")
    if code in (401, 403):
        raise PermissionError(f"the server refuses it ({code}); links of SA-1B expire: fetch a new list of them")
    if 400 <= code < 500 and code not in (408, 425, 429):
        raise _FinalError(f"the server refuses it ({code} {answer.reason})")
    raise ConnectionError(f"the server answers {code} {answer.reason}")


def _body(answer: Any) -> Iterator[bytes]:
    """What follows an answer's headers, while it comes fast enough."""
    import requests

    begun, done = time.monotonic(), 0
    try:
        for piece in answer.iter_content(PIECE):
            yield piece
            done += len(piece)
            if time.monotonic() - begun > TIMEOUT + done / SLOWEST:
                raise TimeoutError(f"{done:,} bytes in {time.monotonic() - begun:.0f} s")
    except requests.RequestException as error:
        raise _plain(error) from error


def _plain(error: Exception) -> OSError:
    """What a library of three layers says, without the layers, addresses and signatures."""
    text = str(error)
    if "timed out" in text:
        return TimeoutError(f"nothing came for {TIMEOUT:g} s")
    known = re.search(r"Connection refused|Name or service not known|IncompleteRead|certificate verify failed", text)
    return ConnectionError(known[0] if known else f"the connection broke ({type(error).__name__})")


_own = threading.local()


def _session() -> Any:
    """A thread's own connections, which stay open from one range to the next."""
    import requests

    if getattr(_own, "process", None) != os.getpid():
        _own.session, _own.process = requests.Session(), os.getpid()
    return _own.session


class Cloud(_Remote):
    """A file in an object store, through fsspec."""

    def stamp(self) -> Stamp:
        """Its size, and the store's tag of it or the time of its last change."""
        return _persistent(self, lambda: _stamp(_timed(lambda: _system(self.url).info(self.url))))

    def text(self) -> bytes:
        """All of it, for what is small."""
        return _persistent(self, lambda: bytes(_timed(lambda: _system(self.url).cat_file(self.url))))

    def _pieces(self, at: int, size: int) -> Iterator[bytes]:
        wait = TIMEOUT + size / (SLOWEST << 4)
        yield bytes(_timed(lambda: _system(self.url).cat_file(self.url, start=at, end=at + size), wait))


def _system(url: str) -> Any:
    """The file system of an address; fsspec keeps one of each kind."""
    import fsspec

    protocol = urlsplit(url).scheme
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        package = PACKAGES.get(protocol, protocol)
        told = f"{protocol}:// needs the package {package}: pip install {package}, or pip install 'samlit[remote]'"
        raise ValueError(told) from error


def _stamp(info: dict[str, Any]) -> Stamp:
    """A stamp of what a store says of a file: each has its own words."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "mtime", "LastModified"):
        if info.get(name):
            return int(info["size"]), str(info[name])
    return int(info["size"]), ""


def _timed(ask: Callable[[], T], seconds: float | None = None) -> T:
    """Ask a library that may never answer; a thread that still waits then is left behind.

    Raises:
        OSError: It did not answer in time, or with an error.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT if seconds is None else seconds)
    if found:
        return found[0]
    if not raised:
        raise TimeoutError(f"no answer for {TIMEOUT if seconds is None else seconds:g} s")
    if isinstance(raised[0], (OSError, ValueError)):
        raise raised[0]
    raise ConnectionError(one_line(raised[0])) from raised[0]  # each store's library has errors of its own


def is_address(text: str) -> bool:
    """Whether it is an address, not a path.

    Raises:
        ValueError: It is one that nothing is read from.
    """
    protocol, colon, _ = text.partition(":")
    if "|" in text or (colon and protocol.strip().lower() == "pipe"):
        raise ValueError(f"{text[:80]!r} would run a program, which no data set may; give a folder or an address")
    if "://" not in text:
        return False
    if protocol not in (*KNOWN, "file") or "::" in text:
        raise ValueError(f"{text[:80]!r} is no address that can be read (known: {', '.join(KNOWN)})")
    return protocol != "file"


def blob(text: str, name: str = "") -> Blob:
    """The file at an address or path, by a name of its own if it has one.

    Raises:
        ValueError: It is an address that nothing is read from.
    """
    if not is_address(text):
        return Local(str(Path(text.removeprefix("file://")).expanduser().absolute()))
    return Web(text, name) if text.startswith(("http://", "https://")) else Cloud(text, name)


def listed(folder: str) -> list[tuple[Blob, Stamp | None]]:
    """The shards in a folder at an address, by name, with their stamps where the listing has them.

    Raises:
        FileNotFoundError: There is no such folder.
        Damaged: It cannot be reached.
    """
    folder = folder.rstrip("/") + "/"
    shards: dict[str, tuple[Blob, Stamp | None]] = {}
    if folder.startswith(("http://", "https://")):
        page = Web(folder).text().decode("utf-8", "replace")
        for link in re.findall(r"""href=["']?([^"'>\s]+\.tar)["'>\s]""", page, re.IGNORECASE):
            found = Web(urljoin(folder, link))
            if found.url.startswith(folder):
                shards[found.name] = (found, None)
    else:
        at = Cloud(folder)
        rows = _persistent(at, lambda: _timed(lambda: _system(folder).ls(folder, detail=True, refresh=True)))
        for row in rows:
            if row.get("type") == "file" and row["name"].endswith(".tar"):
                name = row["name"].rpartition("/")[2]
                shards[name] = (Cloud(folder + name), _stamp(row))
    return [shards[name] for name in sorted(shards) if name.startswith("sa_")]
