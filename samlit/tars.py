"""Where the records of a tar lie: every header read, nothing taken on trust, the answer remembered."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samlit import cache
from samlit.atomic import writing

__all__ = ["Index", "indexed", "walk"]

_BLOCK = tarfile.BLOCKSIZE
_FORMAT = 2  # of the index file
_NAME = re.compile(r"sa_(0|[1-9]\d{0,17})\.(jpg|json)")


@dataclass(frozen=True)
class Index:
    """Where the records of a shard lie.

    Attributes:
        ids: (number of records,) int64, their image ids in the shard's order.
        spans: (number of records, 4) int64: offset and size in bytes of the image, then of the JSON.
    """

    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]


def indexed(path: Path) -> Index:
    """The index of a shard, from its file if that is of this very shard."""
    state = path.stat()
    stamp = [_FORMAT, state.st_size, state.st_mtime_ns]
    beside = path.with_name(path.name + ".index.json")
    named = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    cached = cache.folder() / "indexes" / f"{named}.json"
    for place in (beside, cached):
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(place.read_bytes())
            if stored["stamp"] == stamp:
                ids, spans = np.array(stored["ids"], np.int64), np.array(stored["spans"], np.int64).reshape(-1, 4)
                if ids.shape == spans.shape[:1] and ((spans >= 0) & (spans <= state.st_size)).all():
                    return Index(ids, spans)
    index = walk(path)
    text = json.dumps({"stamp": stamp, "ids": index.ids.tolist(), "spans": index.spans.tolist()})
    for place in (beside, cached):
        with suppress(OSError):  # a folder that may only be read; the next is tried, or there is no index file
            place.parent.mkdir(parents=True, exist_ok=True)
            with writing(place) as stream:
                stream.write(text.encode())
            break
    return index


def walk(path: Path) -> Index:
    """Index a tar by its headers, all of them.

    The standard library's reader takes a damaged header for the end of the archive, and the rest would be lost in
    silence: hence this one, which wants every header whole and the end marked.
    """
    parts: dict[int, dict[str, tuple[int, int]]] = {}
    total = path.stat().st_size
    with path.open("rb") as stream:
        at = 0
        while True:
            stream.seek(at)
            block = stream.read(_BLOCK)
            if len(block) < _BLOCK:
                raise ValueError(f"{path.name}: the shard is cut off after {at} bytes, its end is not marked")
            if not block.strip(b"\0"):
                break
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise ValueError(f"{path.name}: damaged header at byte {at}: {error}") from error
            begin = at + _BLOCK
            at = begin + -(-header.size // _BLOCK) * _BLOCK
            if header.size < 0 or at > total:
                raise ValueError(f"{path.name}: the shard is cut off in {header.name!r}")
            if header.type == tarfile.XHDTYPE:
                stream.seek(begin)
                fields = stream.read(min(header.size, 1 << 20))
                if header.size > len(fields) or b" path=" in fields or b" size=" in fields:
                    raise ValueError(f"{path.name}: names or sizes in extended headers are not supported; use USTAR")
            elif header.isreg():
                name = header.name.rpartition("/")[2]
                if name.endswith((".jpg", ".json")) and not name.startswith("."):
                    match = _NAME.fullmatch(name)
                    if match is None:
                        raise ValueError(f"{path.name}: {name!r} is not called sa_<id>.jpg or sa_<id>.json")
                    files = parts.setdefault(int(match[1]), {})
                    if match[2] in files:
                        raise ValueError(f"{path.name}: {name} comes twice")
                    files[match[2]] = begin, header.size
            elif header.type not in (tarfile.DIRTYPE, tarfile.XGLTYPE):
                raise ValueError(f"{path.name}: {header.name!r} is neither a file nor a folder")
        while rest := stream.read(1 << 20):
            if rest.strip(b"\0"):
                raise ValueError(f"{path.name}: there is more after the end that is marked at byte {at}")
    for number, files in parts.items():
        if len(files) < 2:
            raise ValueError(f"{path.name}: sa_{number} has no {'json' if 'jpg' in files else 'jpg'}")
    spans = np.array([[*files["jpg"], *files["json"]] for files in parts.values()], np.int64).reshape(-1, 4)
    return Index(np.array(list(parts), np.int64), spans)
