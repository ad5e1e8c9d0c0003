"""Shards in SA-1B's own layout: tar files of sa_<id>.jpg and sa_<id>.json, written whole and read by number.

A shard that is cut or whose headers are damaged ends in one line that names it, never in less data than there should
be.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from samlit.atomic import writing
from samlit.faults import Damaged, blaming
from samlit.records import Record, parse
from samlit.tars import Index, indexed

__all__ = ["Shard", "write"]


def write(path: Path, records: Iterable[Record]) -> int:
    """Write a shard: all of it under its name, or nothing; the same records give the same bytes.

    Args:
        path: Of the tar; its folder must exist.
        records: In order.

    Returns:
        How many records were written.

    Raises:
        ValueError: A key comes twice, or a mask is not of its image's size.
    """
    # Late, for it is slow to import and readers do without it.
    from webdataset import TarWriter

    seen: set[str] = set()
    with writing(path) as stream, TarWriter(stream, encoder=False, mtime=0, user="samlit", group="samlit") as tar:
        for record in records:
            if record.key in seen:
                raise ValueError(f"{path.name}: {record.key} comes twice")
            if any(a.mask.size != record.size for a in record.annotations):
                raise ValueError(f"{path.name}: {record.key} has a mask that is not of the image's size")
            seen.add(record.key)
            tar.write({"__key__": record.key, "jpg": record.jpeg, "json": record.text()})
    return len(seen)


class Shard:
    """A shard to read by number; it holds no open file, so it may be pickled and read by many threads.

    Args:
        path: Of the tar.

    Raises:
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"there is no shard {path}")
        self.path = path
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """Where everything lies, read from the index file, which is written where it is missing or out of date.

        Raises:
            ValueError: The shard is damaged; one line that names it and says how.
        """
        if self._index is None:
            self._index = indexed(self.path)
        return self._index

    def __len__(self) -> int:
        return len(self.index.ids)

    def __getitem__(self, number: int) -> Record:
        """The record, its JSON and masks checked; its image is checked when it is decoded.

        Raises:
            Damaged: The record is; it names shard and key and says how.
        """
        at, size, text_at, text_size = self.index.spans[number].tolist()
        with self.path.open("rb") as stream:
            stream.seek(at)
            jpeg = stream.read(size)
            stream.seek(text_at)
            text = stream.read(text_size)
        with blaming(f"sa_{self.index.ids[number]}", self.path.name):
            if len(jpeg) != size or len(text) != text_size:
                raise Damaged("changed", "the shard is shorter than its index says")
            return parse(int(self.index.ids[number]), jpeg, text)
