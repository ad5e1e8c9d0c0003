"""Files of bytes, here or on a server, read by ranges: with timeouts, tried again, gone on with where they broke."""

from __future__ import annotations

import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from samlit.errors import one_line
from samlit.faults import Damaged
from samlit.shards.tars import Stamp

__all__ = ["Blob", "FinalError", "Local", "Remote", "persistent"]

T = TypeVar("T")

TRIES = 5
"""How often in a row a read may bring nothing before it is given up."""
PAUSE = 1.0
"""Seconds before the second try; twice as many before each further one."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""
SLOWEST = 1 << 13
"""Bytes a second; a connection that is slower for longer than the timeout counts as broken, too."""
PIECE = 1 << 16


class FinalError(OSError):
    """An answer that will be the same however often it is asked for."""


_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, FinalError)


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


class Remote(Blob):
    """A file on a server."""

    @abstractmethod
    def text(self) -> bytes:
        """All of it, for what is small.

        Raises:
            FileNotFoundError: It is not there.
            Damaged: It cannot be reached.
        """

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


def persistent(what: Blob, ask: Callable[[], T]) -> T:
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
