"""Shards in SA-1B's own layout, tar files of sa_<id>.jpg and sa_<id>.json, written whole; `store.py` reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from samlit.atomic import writing
from samlit.shards.records import Record

__all__ = ["write"]


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
