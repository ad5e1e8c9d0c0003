"""Shards of SA-1B, and of anything else in its layout (SAM_SPEC 4)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from samlit.contracts import Source
from samlit.shards import Shard
from samlit.structures import Sample

__all__ = ["Sa1b"]


class Sa1b(Source):
    """SA-1B, or other shards in its layout: a folder of sa_*.tar, or one tar.

    Args:
        root: The folder, or the tar.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._shards: list[Shard] | None = None
        self._ends: list[int] = []

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Index all shards; the indexes are kept beside them.

        Args:
            progress: Told (shards done, shards, what is being done).

        Raises:
            FileNotFoundError: There is no such folder or tar.
            ValueError: There is no shard in it, or one is damaged.
        """
        shards = self._found()
        for done, shard in enumerate(shards):
            progress(done, len(shards), f"indexing {shard.path.name}")
            _ = shard.index
        progress(len(shards), len(shards), "indexed")
        self._ends = list(accumulate(len(shard) for shard in shards))
        self._shards = shards

    def __len__(self) -> int:
        self._ready()
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Record number `index`, in the order of shards by name and of records as stored.

        Raises:
            IndexError: There are not so many.
            ValueError: The record is damaged; one line that names shard and key and says how.
        """
        shards = self._ready()
        if not 0 <= index < self._ends[-1]:
            raise IndexError(f"{self.root} has {self._ends[-1]} records, there is no number {index}")
        which = bisect_right(self._ends, index)
        shard = shards[which]
        number = index - self._ends[which] + len(shard)
        record = shard[number]
        phrases = tuple(a.phrase for a in record.annotations)
        masks = tuple(a.mask for a in record.annotations)
        return Sample(record.key, record.image, masks, phrases if any(phrases) else (), shard.path.name)

    def _ready(self) -> list[Shard]:
        if self._shards is None:
            self.prepare()
        assert self._shards is not None
        return self._shards

    def _found(self) -> list[Shard]:
        root = Path(self.root).expanduser()
        if not root.exists():
            raise FileNotFoundError(f"there is no folder or tar {root}")
        paths = sorted(root.glob("sa_*.tar")) if root.is_dir() else [root]
        if not paths:
            raise ValueError(f"there is no sa_*.tar in {root}")
        return [Shard(path) for path in paths]
