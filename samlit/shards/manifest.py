"""One small file for a folder of shards: what each is and holds, so that none has to be opened to know it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samlit.shards.tars import Stamp

__all__ = ["FILE", "Row", "parse", "text", "update"]

FILE = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[\w.-]+\.tar")


@dataclass(frozen=True)
class Row:
    """What is known of a shard.

    Attributes:
        name: Of the tar.
        stamp: Its bytes, and the time of its last change or a tag of its server.
        records: How many can be read.
        faults: By cause, how much of it cannot be used.
        sha256: Of all its bytes; empty where nobody has computed it.
    """

    name: str
    stamp: Stamp
    records: int
    faults: Mapping[str, int] = field(default_factory=dict)
    sha256: str = ""

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stamp[0]


def parse(data: bytes) -> dict[str, Row]:
    """The rows of a manifest, by name.

    Raises:
        ValueError: It is none.
    """
    stored = json.loads(data)
    rows = {}
    try:
        if stored["format"] != FORMAT:
            raise ValueError(f"the manifest is of format {stored['format']}, not {FORMAT}")
        for one in stored["shards"]:
            name, tag, faults, digest = one["name"], one["stamp"], one["faults"], one.get("sha256", "")
            # A name is put behind the folder's: it must not lead out of it.
            sound = isinstance(name, str) and _NAME.fullmatch(name) and isinstance(tag, (int, str))
            if not sound or not isinstance(digest, str) or not all(type(n) is int for n in faults.values()):
                raise ValueError(f"the manifest has a row that is none: {str(one)[:80]}")
            rows[name] = Row(name, (_count(one["bytes"]), tag), _count(one["records"]), dict(faults), digest)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("this is no manifest of shards") from error
    return rows


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"the manifest has {str(value)[:40]!r} where a number should be")
    return value


def text(rows: Iterable[Row]) -> str:
    """The manifest with these rows, a line each."""
    lines = []
    for row in sorted(rows, key=lambda row: row.name):
        one = {"name": row.name, "bytes": row.size, "stamp": row.stamp[1], "records": row.records}
        known = {"sha256": row.sha256} if row.sha256 else {}
        lines.append(json.dumps({**one, "faults": dict(row.faults), **known}))
    return f'{{"format": {FORMAT}, "shards": [\n' + ",\n".join(lines) + "\n]}\n"


def update(
    folder: Path,
    hashes: Mapping[str, str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Row]:
    """Make the manifest of a folder true of the shards in it; for whoever has written some.

    Args:
        folder: Of shards.
        hashes: By name, the sha256 of shards that were just written.
        progress: Told (shards done, shards to index, what is being done).

    Returns:
        The rows, by name.

    Raises:
        ValueError: There is no shard in it.
    """
    # Late, for the store reads manifests.
    from samlit.shards.store import Store

    store = Store(str(folder))
    store.open(progress, hashes=hashes or {})
    return list(store.rows)
