"""Shards of SA-1B, and of anything else in its layout (SAM_SPEC 4)."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged
from samlit.masks import rle
from samlit.shards import subsets
from samlit.shards.records import Annotation
from samlit.shards.store import Store
from samlit.source import Sample, Source

__all__ = ["Sa1b"]


class Sa1b(Source):
    """SA-1B, or other shards in its layout: a folder of sa_*.tar, one tar, or a list of links.

    Shards may be remote; they are read by ranges then. Masks are chosen by the numbers that their JSON states, before
    any of them is read.

    Args:
        root: A folder or a tar, as a path or an address of http, https, s3, gs or hf; or SA-1B's list of links.
        subset: Some of the shards, "sa_000000..sa_000019", several with commas; or a file of image ids, one a line.
        min_predicted_iou: Masks of which the model that made them thought less are left out.
        min_stability: Masks of a lower stability score are left out.
        min_area: Smaller masks are left out: pixels, or up to 1 a share of the image.
        max_area: Larger masks are left out: pixels, or up to 1 a share of the image.
        empty: Whether images without a mask in their JSON are samples, too; they are left out as "empty" otherwise.
        cache: A folder for parts of remote shards; nothing is kept if not given.
        cache_size: What it holds at most.
    """

    def __init__(
        self,
        root: str,
        subset: str | None = None,
        min_predicted_iou: float = 0.0,
        min_stability: float = 0.0,
        min_area: float = 0.0,
        max_area: float = 1.0,
        empty: bool = False,
        cache: str | None = None,
        cache_size: str = "200GB",
    ) -> None:
        if min_area < 0 or max_area <= 0:
            raise ValueError(f"min_area is at least 0 and max_area more, not {min_area:g} and {max_area:g}")
        self.root, self.subset = root, subset
        self.min_predicted_iou, self.min_stability = min_predicted_iou, min_stability
        self.min_area, self.max_area, self.empty = min_area, max_area, empty
        self._ids = Path(subset).expanduser() if subset and Path(subset).expanduser().is_file() else None
        if subset and self._ids is None:
            subsets.ranges(subset)
        self._store = Store(root, cache, cache_size)
        self._chosen: list[npt.NDArray[np.int32]] | None = None
        self._ends: list[int] | None = None

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Index the shards that are new or have changed; what is damaged is told by `faults`.

        Args:
            progress: Told (shards done, shards to index, what is being done).

        Raises:
            FileNotFoundError: There is no such folder, tar or list.
            ValueError: There is no shard in it, or no record that can be read.
        """
        shards = subsets.ranges(self.subset) if self.subset and self._ids is None else None
        only = None if shards is None else lambda names: subsets.chosen(names, shards, self.root)
        try:
            self._store.open(progress, only)
        except FileNotFoundError as error:
            where = self.root if "://" in self.root else str(Path(self.root).expanduser().absolute())
            raise FileNotFoundError(
                f"there are no shards at {where}: name their place with --data.source.root, get SA-1B with "
                "`samlit shards get LINKS --out sa1b`, or train on something else (--data.source shapes|coco|folder)"
            ) from error
        counts = [row.records for row in self._store.rows]
        if self._ids is not None:
            self._chosen = self._by_id(subsets.image_ids(self._ids), progress)
            counts = [len(numbers) for numbers in self._chosen]
        causes: Counter[str] = Counter()
        for row in self._store.rows:
            causes.update(row.faults)
        if not sum(counts) and (causes or self._ids is not None):
            told = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
            if causes:
                raise ValueError(f"{self.root} has no record that can be read ({told}): {self.faults()[0]}")
            raise ValueError(f"none of the images of {self._ids} is in {self.root}")
        self._ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self._ready()[-1]

    def __getitem__(self, index: int) -> Sample:
        """Record number `index`, in the order of shards by name and of records as stored.

        Raises:
            IndexError: There are not so many.
            Damaged: The record is damaged, cannot be had, or has no mask; one line that names shard and key.
        """
        which, number = self._place(index)
        record, shard = self._store.record(which, number), self._store.rows[which].name
        if not record.annotations and not self.empty:
            raise Damaged("empty", "the image has no mask", record.key, shard)
        numbers = tuple(n for n, a in enumerate(record.annotations) if self._wanted(a))
        chosen = [record.annotations[n] for n in numbers]
        phrases = tuple(a.phrase for a in chosen)
        masks = tuple(a.mask for a in chosen)
        return Sample(record.key, record.image, masks, phrases if any(phrases) else (), shard, numbers=numbers)

    def shards(self) -> Sequence[int]:
        """How many records each shard has."""
        ends = self._ready()
        return [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    def faults(self) -> Sequence[Damaged]:
        """What of the shards cannot be read, found when they were indexed."""
        return self._store.faults()

    def prefetch(self, indices: Sequence[int]) -> None:
        """Begin to read remote records that will be asked for next, in this order."""
        self._store.prefetch([self._place(index) for index in indices])

    def _ready(self) -> list[int]:
        if self._ends is None:
            self.prepare()
        assert self._ends is not None
        return self._ends

    def _place(self, index: int) -> tuple[int, int]:
        """The shard of a record, and its number in it."""
        ends = self._ready()
        if not 0 <= index < ends[-1]:
            raise IndexError(f"{self.root} has {ends[-1]} records, there is no number {index}")
        which = bisect_right(ends, index)
        number = index - (ends[which - 1] if which else 0)
        return which, number if self._chosen is None else int(self._chosen[which][number])

    def _by_id(
        self, ids: npt.NDArray[np.int64], progress: Callable[[int, int, str], None]
    ) -> list[npt.NDArray[np.int32]]:
        """The numbers of the records that are wanted, a shard each."""
        chosen, total = [], len(self._store.rows)
        for which in range(total):
            progress(which, total, "choosing images")
            known = self._store.index(which).ids if self._store.rows[which].records else np.empty(0, np.int64)
            chosen.append(np.flatnonzero(np.isin(known, ids, assume_unique=True)).astype(np.int32))
        progress(total, total, "choosing images")
        return chosen

    def _wanted(self, annotation: Annotation) -> bool:
        if annotation.predicted_iou < self.min_predicted_iou or annotation.stability_score < self.min_stability:
            return False
        if self.min_area <= 0 and self.max_area == 1:
            return True
        rows, columns = annotation.mask.size
        area = rle.area(annotation.mask) if annotation.area is None else annotation.area
        least, most = (a * (rows * columns if a <= 1 else 1) for a in (self.min_area, self.max_area))
        return least <= area <= most
