"""What is found when a shard is indexed, and where it is written down."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from samlit import cache
from samlit.atomic import writing
from samlit.errors import one_line
from samlit.faults import Damaged
from samlit.shards import tars
from samlit.shards.blobs import Blob, Local
from samlit.shards.chunks import Chunks
from samlit.shards.manifest import Row
from samlit.shards.tars import Index, Stamp

__all__ = ["Noted", "looked", "note", "places", "sha256", "short", "walk_and_write", "walked", "written"]

WINDOW = 1 << 14
"""Bytes of a remote shard that are read at a time for its headers, most of which lie far apart."""


@dataclass(frozen=True)
class Noted:
    """What indexing a shard has found.

    Attributes:
        row: For the manifest.
        faults: What of it cannot be used.
    """

    row: Row
    faults: tuple[Damaged, ...]

    @property
    def lasting(self) -> bool:
        """Whether it is true tomorrow: a server that does not answer today may."""
        return "unreadable" not in self.row.faults


def note(blob: Blob, chunks: Chunks | None = None, digest: bool = False) -> Noted:
    """Index a shard and write its index file.

    Args:
        blob: The shard.
        chunks: A cache to read a remote one through.
        digest: Compute its sha256, for which all of it is read.
    """
    try:
        stamp = blob.stamp()
        noted, _ = walk_and_write(blob, stamp, chunks)
        if digest and noted.lasting:
            return replace(noted, row=replace(noted.row, sha256=sha256(blob, stamp[0])))
        return noted
    except (OSError, Damaged) as error:
        told = f"the shard cannot be read: {one_line(error)}"
        fault = error if isinstance(error, Damaged) else Damaged("unreadable", told, "", blob.name)
        return Noted(Row(blob.name, (0, ""), 0, {"unreadable": 1}), (fault,))


def sha256(blob: Blob, size: int) -> str:
    """Of all bytes of a shard.

    Raises:
        Damaged: They cannot be had.
    """
    if isinstance(blob, Local):
        with open(blob.url, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    state = hashlib.sha256()
    for at in range(0, size, 8 << 20):
        state.update(blob.read(at, min(8 << 20, size - at)))
    return state.hexdigest()


def walked(blob: Blob, stamp: Stamp, chunks: Chunks | None = None) -> Index:
    """The index of a shard, by its headers."""
    if isinstance(blob, Local):
        return tars.walked(Path(blob.url))
    return tars.walk(_Window(blob, stamp, chunks).read, stamp[0], blob.name)


def walk_and_write(blob: Blob, stamp: Stamp, chunks: Chunks | None) -> tuple[Noted, Index]:
    """Index a shard and write the index file."""
    index = walked(blob, stamp, chunks)
    row = Row(blob.name, stamp, len(index.ids), dict(Counter(fault.cause for fault in index.faults)))
    noted = Noted(row, index.faults)
    if noted.lasting:
        written(tars.packed(index, stamp), *places(blob))
    return noted, index


class _Window:
    """Reads a remote shard a window at a time: many headers lie beside a JSON, which is short."""

    def __init__(self, blob: Blob, stamp: Stamp, chunks: Chunks | None) -> None:
        self.blob, self.stamp, self.chunks = blob, stamp, chunks
        self.at, self.data = 0, b""

    def read(self, at: int, size: int) -> bytes:
        if not self.at <= at <= at + size <= self.at + len(self.data):
            wanted = max(0, min(max(size, WINDOW), self.stamp[0] - at))
            if self.chunks is None:
                self.data = self.blob.read(at, wanted)
            else:
                self.data = self.chunks.read(self.blob, self.stamp, at, wanted)
            self.at = at
        return self.data[at - self.at :][:size]


def looked(blob: Blob) -> Stamp:
    """The stamp of a shard; one that fits nothing where it cannot be had, as of a link to nowhere."""
    try:
        return blob.stamp()
    except (OSError, Damaged):
        return -1, 0


def places(blob: Blob) -> list[Path]:
    """Where the index of a shard may be: beside it, or in the cache."""
    cached = cache.folder() / "indexes" / f"{short(blob.known_as)}.index"
    return [Path(blob.url + ".index"), cached] if isinstance(blob, Local) else [cached]


def written(data: bytes, *places: Path) -> None:
    """Write a file at the first place where that is possible; one that is not written is made anew next time."""
    for place in places:
        with suppress(OSError):
            with writing(place) as stream:
                stream.write(data)
            return


def short(text: str) -> str:
    """A name for a file that is about something with a long one."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]
