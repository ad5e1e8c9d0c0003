"""Shards in SA-1B's own layout, tar files of sa_<id>.jpg and sa_<id>.json, written whole; `store.py` reads them.

The bytes are those of webdataset's own writer, which is not asked for them: to import it is to import torch, and every
process of `samlit shards make` would hold that.
"""

from __future__ import annotations

import io
import tarfile
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
    seen: set[str] = set()
    with writing(path) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for record in records:
            if record.key in seen:
                raise ValueError(f"{path.name}: {record.key} comes twice")
            if any(a.mask.size != record.size for a in record.annotations):
                raise ValueError(f"{path.name}: {record.key} has a mask that is not of the image's size")
            seen.add(record.key)
            _add(tar, f"{record.key}.jpg", record.jpeg)
            _add(tar, f"{record.key}.json", record.text())
    return len(seen)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    member.uname = member.gname = "samlit"
    tar.addfile(member, io.BytesIO(data))
