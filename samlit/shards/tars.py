"""Where the records of a tar lie: every header read, nothing taken on trust, nothing that is damaged left unsaid."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged

__all__ = ["Index", "Read", "Stamp", "packed", "unpacked", "walk", "walked"]

Read = Callable[[int, int], bytes]
"""Reads a range, (first byte, number of bytes); fewer come only where the file ends."""
Stamp = tuple[int, int | str]
"""What tells a file from another of its name: its bytes, and the time of its last change or a tag of its server."""

BLOCK = 512
FORMAT = 3  # of the index file
PADDING = 1 << 20  # zero bytes after the end of a tar that are no sign of anything; tar itself writes 10,240
_EXTENDED = 1 << 20  # bytes of an extended header; they hold a name and times
_NAME = re.compile(r"sa_(0|[1-9]\d{0,17})\.(jpg|json)")


@dataclass(frozen=True)
class Index:
    """Where the records of a shard lie, and what of it cannot be used.

    Attributes:
        ids: (number of records,) int64, their image ids in the shard's order.
        spans: (number of records, 4) int64: offset and size in bytes of the image, then of the JSON.
        faults: What is damaged.
    """

    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    faults: tuple[Damaged, ...] = ()


class _Member(NamedTuple):
    name: str
    kind: bytes
    begin: int
    size: int
    sparse: bool

    @property
    def key(self) -> str:
        """The record's, if it is of one."""
        match = _NAME.fullmatch(self.name.rpartition("/")[2])
        return f"sa_{match[1]}" if match else ""


def walked(path: Path) -> Index:
    """Index a tar on this machine."""
    with path.open("rb", buffering=0) as stream:
        handle = stream.fileno()
        return walk(lambda at, size: os.pread(handle, size, at), os.fstat(handle).st_size, path.name)


def walk(read: Read, size: int, name: str) -> Index:
    """Index a tar by its headers, all of them.

    The standard library's reader takes a damaged header for the end of the archive, and the rest would be lost in
    silence: hence this one, which wants every header whole and the end marked. Behind a damaged header nothing can be
    trusted, so that it ends there; all that came before counts.

    Args:
        read: Reads a range of the tar.
        size: Of the tar, in bytes.
        name: Of the tar, for the faults.

    Returns:
        All records that are whole, and a fault for whatever else there is. It does not raise for what it reads.
    """
    parts: dict[int, dict[str, tuple[int, int]]] = {}
    twice: set[int] = set()
    faults: list[Damaged] = []
    try:
        for member in _members(read, size):
            if said := _unusable(member):
                faults.append(Damaged("name", said, member.key, name))
            elif match := _NAME.fullmatch(member.name.rpartition("/")[2]):
                files = parts.setdefault(int(match[1]), {})
                if match[2] in files and int(match[1]) not in twice:
                    twice.add(int(match[1]))  # which of them belongs to the other file, nobody knows
                    faults.append(Damaged("pair", f"sa_{match[1]}.{match[2]} comes twice", f"sa_{match[1]}", name))
                files[match[2]] = member.begin, member.size
    except Damaged as error:
        faults.append(Damaged(error.cause, error.message, error.key, name))
    except OSError as error:
        faults.append(Damaged("unreadable", f"the shard cannot be read: {error}", "", name))
    for number, files in parts.items():
        if len(files) < 2 and number not in twice:
            missing = "json" if "jpg" in files else "jpg"
            faults.append(Damaged("pair", f"there is no sa_{number}.{missing}", f"sa_{number}", name))
    whole = {number: files for number, files in parts.items() if len(files) == 2 and number not in twice}
    spans = np.array([[*files["jpg"], *files["json"]] for files in whole.values()], np.int64).reshape(-1, 4)
    return Index(np.array(list(whole), np.int64), spans, tuple(faults))


def _unusable(member: _Member) -> str:
    """Why a member is neither a file of a record nor one that may be passed over; nothing where it is."""
    name, last = member.name, member.name.rpartition("/")[2]
    if member.kind not in b"05":
        return f"{name[:80]!r} is neither a file nor a folder"
    if name.startswith("/") or ".." in name.split("/"):
        return f"{name[:80]!r} leads out of the shard"
    if member.kind == b"5" or last.startswith("."):  # macOS writes ._sa_1.jpg beside sa_1.jpg
        return ""
    if last.lower().endswith((".jpg", ".json")):
        if not _NAME.fullmatch(last):
            return f"{last[:80]!r} is not called sa_<id>.jpg or sa_<id>.json"
        if member.sparse:
            return f"{last!r} is stored as a sparse file"
    return ""


def _members(read: Read, total: int) -> Iterator[_Member]:
    """All members whose bytes are all there.

    Raises:
        Damaged: The tar is cut, a header is damaged, or there is more behind its end.
    """
    at, name, size, sparse = 0, "", -1, False  # what an extended header says of the member that follows
    while True:
        block = read(at, BLOCK)
        if len(block) < BLOCK:
            raise Damaged("cut", f"the shard is cut off after {total} bytes, its end is not marked")
        if not block.strip(b"\0"):
            _end(read, at, total)
            return
        try:
            header = _header(block, at)
        except ValueError as error:
            raise Damaged("header", f"damaged header at byte {at}: {error}") from error
        if header.kind not in b"xgLK":
            own = header.size if size < 0 else size
            header = header._replace(name=name or header.name, size=own, sparse=sparse)
        # As tar does: a link, folder or device has no bytes, whatever its size.
        end = header.begin + (0 if header.kind in b"123456" else -(-header.size // BLOCK) * BLOCK)
        if end > total:
            raise Damaged("cut", f"the shard is cut off in {header.name[:80]!r}", header.key)
        at = end
        if header.kind in b"xL":
            data = read(header.begin, header.size) if header.size <= _EXTENDED else b""
            if len(data) < header.size:
                raise Damaged("header", f"damaged header at byte {header.begin}: {header.size} bytes long")
            if header.kind == b"L":
                name = _text(data)
                continue
            try:
                fields = _fields(data)
                name, size = _text(fields.get("path", name.encode())), int(fields.get("size", size))
            except ValueError as error:
                raise Damaged("header", f"damaged extended header at byte {header.begin}: {error}") from error
            sparse = any(field.startswith("GNU.sparse") for field in fields)
        elif header.kind not in b"gK":
            yield header
            name, size, sparse = "", -1, False


def _end(read: Read, at: int, total: int) -> None:
    """See that nothing but a little padding follows the end that is marked at a byte."""
    place = at
    while place < min(total, at + PADDING) and (rest := read(place, min(1 << 17, total - place))):
        if rest.strip(b"\0"):
            raise Damaged("header", f"there is more after the end that is marked at byte {at}")
        place += len(rest)
    if total > at + PADDING:
        raise Damaged("cut", f"the shard ends at byte {at} of {total}, as of a download that was never finished")


def _header(block: bytes, at: int) -> _Member:
    """A header's block.

    Raises:
        ValueError: It is none; a few words that say why.
    """
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ValueError("its checksum is wrong")
    size, kind = _number(block[124:136]), block[156:157]
    if size < 0:
        raise ValueError(f"its size is {size}")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    if kind in (b"\0", b"0", b"7"):
        kind = b"5" if kind == b"\0" and name.endswith("/") else b"0"
    return _Member(name, kind, at + BLOCK, size, False)


def _number(field: bytes) -> int:
    """A number of a header: octal digits, or binary where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    digits = field.partition(b"\0")[0].strip()
    if digits and not digits.isdigit():
        raise ValueError(f"{digits!r} is no number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    """A name of a header, such that it can be printed whatever it is."""
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")


def _fields(data: bytes) -> dict[str, bytes]:
    """The fields of an extended header: lines of `LENGTH NAME=VALUE`, where the length is the whole line's."""
    fields: dict[str, bytes] = {}
    while data.strip(b"\0"):
        digits = data.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        name, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or data[length - 1 : length] != b"\n":
            raise ValueError("it has a line that is none")
        fields[_text(name)] = value
        data = data[length:]
    return fields


def packed(index: Index, stamp: Stamp) -> bytes:
    """An index file: a line of JSON, then the numbers of the index."""
    numbers = np.column_stack([index.ids, index.spans]).astype("<i8").tobytes()
    about = {
        "format": FORMAT,
        "stamp": stamp,
        "records": len(index.ids),
        "crc": zlib.crc32(numbers),
        "faults": [[fault.cause, fault.message, fault.key, fault.shard] for fault in index.faults],
    }
    line = json.dumps(about).encode()
    return line + b" " * (-(len(line) + 1) % 8) + b"\n" + numbers  # the numbers begin at a multiple of their size


def unpacked(data: bytes | mmap, stamp: Stamp) -> Index:
    """The index in an index file; its numbers stay where they are, in memory or in a mapped file.

    Raises:
        ValueError: It is none, or of another shard than the stamp's.
    """
    line = data[: max(0, data.find(b"\n"))]
    about = json.loads(line)
    try:
        if about["format"] != FORMAT or about["stamp"] != list(stamp):
            raise ValueError("the index is of another shard")
        numbers = np.frombuffer(data, "<i8", offset=len(line) + 1).reshape(about["records"], 5)
        if zlib.crc32(memoryview(data)[len(line) + 1 :]) != about["crc"]:
            raise ValueError("the index is damaged")
        faults = tuple(Damaged(*fault) for fault in about["faults"])
    except (KeyError, TypeError) as error:
        raise ValueError("this is no index") from error
    return Index(numbers[:, 0], numbers[:, 1:], faults)
