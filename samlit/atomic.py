"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["replacing", "write", "writing"]


@contextmanager
def writing(path: Path, alone: bool = False) -> Iterator[IO[bytes]]:
    """A file that appears under its name when all of it is on the disk, and not at all after an error.

    It is written in its own folder, for a rename is atomic only within one file system. Folders above it are made.

    Args:
        path: The file.
        alone: No other process writes this file: what is unfinished then has one name, so that runs which are killed
            leave one piece at most, and the next one takes its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{'part' if alone else secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # some systems cannot sync a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path: Path, data: bytes | str) -> None:
    """Write a whole file at once."""
    with writing(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def replacing(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file through a function that wants a path of its own: the old file stands until the new one is whole."""
    path = Path(path)
    with writing(path, alone=True) as stream:
        write(Path(stream.name))
