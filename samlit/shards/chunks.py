"""Remote files kept on this machine, in chunks and up to a size; what was used least recently goes first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samlit.atomic import writing
from samlit.shards.blobs import Blob
from samlit.shards.tars import Stamp

__all__ = ["Chunks", "parse_size"]

CHUNK = 32 << 20
"""Bytes a chunk: large enough for a server's full speed, small enough to be read for its neighbours' sake."""
FRESH = 30.0
"""Seconds for which a chunk counts as just used; its time is not written again before."""
LOCKS = 64


class Chunks:
    """A cache of chunks in a folder, for any number of processes at once.

    A chunk appears whole, under the name of its file's address and stamp, so that another version of a file is another
    file. Two processes that want the same chunk read it once.

    Args:
        folder: The cache's own; made if it is not there.
        limit: Bytes that it holds at most, give or take a chunk a process.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def read(self, blob: Blob, stamp: Stamp, at: int, size: int) -> bytes:
        """The bytes of a range of a file, from the chunks that they are in.

        Raises:
            Damaged: They cannot be had.
        """
        parts = []
        for number in range(at // CHUNK, (at + size - 1) // CHUNK + 1 if size else 0):
            begin = number * CHUNK
            first, last = max(at, begin) - begin, min(at + size, begin + CHUNK) - begin
            parts.append(self._read(blob, stamp, number, first, last - first))
        return b"".join(parts)

    def _read(self, blob: Blob, stamp: Stamp, number: int, at: int, size: int) -> bytes:
        path = self.folder / hashlib.sha256(f"{blob.known_as} {stamp}".encode()).hexdigest()[:24] / f"{number}.chunk"
        if (data := _part(path, at, size)) is not None:
            return data
        with self._alone(path):
            if (data := _part(path, at, size)) is not None:  # another process has brought it meanwhile
                return data
            whole = blob.read(number * CHUNK, min(CHUNK, stamp[0] - number * CHUNK))
            with suppress(OSError), writing(path, alone=True) as stream:  # a full disk hinders no training
                stream.write(whole)
        self._tidy()
        return whole[at : at + size]

    @contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Let one process at a time bring a chunk; the system forgets the lock of a process that is gone."""
        number = int(hashlib.sha256(str(path).encode()).hexdigest(), 16) % LOCKS
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        with (self.folder / ".locks" / str(number)).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _tidy(self) -> None:
        """Remove what was used least recently, down to the limit."""
        with (self.folder / ".locks" / "tidy").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another process does it
            found = []
            for path in self.folder.glob("*/*.chunk"):
                with suppress(OSError):
                    state = path.stat()
                    found.append((state.st_mtime_ns, state.st_size, path))
            held = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if held <= self.limit:
                    break
                with suppress(OSError):  # who reads it has it open, and reads on
                    path.unlink()
                held -= size
                with suppress(OSError):
                    path.parent.rmdir()  # only if it was the last


def _part(path: Path, at: int, size: int) -> bytes | None:
    """A part of a chunk; nothing where it is not there."""
    try:
        with path.open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), size, at)
            if time.time() - os.fstat(stream.fileno()).st_mtime > FRESH:
                with suppress(OSError):  # another user's, who alone may say when it was used
                    os.utime(stream.fileno())
    except OSError:
        return None
    return data if len(data) == size else None


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: 200GB, 1.5 TB, 64 MiB.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text[:40]!r} is no size; write it as 200GB or 1.5TB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
