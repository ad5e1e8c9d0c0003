"""Some of many shards, and some of many images, as people write them down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["chosen", "image_ids", "ranges"]

_ID = re.compile(r"(?:sa_)?(\d{1,18})(?:\.jpg|\.json)?")


def ranges(text: str) -> list[tuple[str, str]]:
    """First and last shard of each range of "sa_000000..sa_000019,sa_000100".

    Raises:
        ValueError: It is none.
    """
    found = []
    for part in text.split(","):
        ends = [end.strip().removesuffix(".tar") for end in part.split("..")]
        if len(ends) > 2 or not all(re.fullmatch(r"sa_\w+", end) for end in ends) or ends[0] > ends[-1]:
            raise ValueError(f"subset {part.strip()!r} is neither a file nor shards like sa_000000..sa_000019")
        found.append((ends[0], ends[-1]))
    return found


def chosen(names: Sequence[str], wanted: list[tuple[str, str]], root: str) -> list[str]:
    """The shards that are in one of the ranges.

    Raises:
        ValueError: One of them is not there; one line that names it.
    """
    stems = [name.removesuffix(".tar") for name in names]
    for first, last in wanted:
        for end in (first, last):
            if end not in stems:
                raise ValueError(f"there is no {end}.tar in {root}, which the subset asks for")
        count = sum(first <= stem <= last for stem in stems)
        if all(end[3:].isdigit() for end in (first, last)) and count != int(last[3:]) - int(first[3:]) + 1:
            raise ValueError(f"of {first}..{last} only {count} shards are in {root}; get the others, or ask for less")
    return [f"{stem}.tar" for stem in stems if any(first <= stem <= last for first, last in wanted)]


def image_ids(path: Path) -> npt.NDArray[np.int64]:
    """Image ids of a file, one a line: 123, sa_123 or sa_123.jpg.

    Raises:
        ValueError: A line is none; it is named.
    """
    ids = []
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                match = _ID.fullmatch(line.strip())
                if match is None:
                    raise ValueError(f"{path}: line {number} is no image id: {line.strip()[:40]!r}")
                ids.append(int(match[1]))
    return np.unique(np.array(ids, np.int64))
