"""Several sources as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from samlit.faults import Damaged
from samlit.source import Sample, Source

__all__ = ["Joined"]


class Joined(Source):
    """Several sources, one after the other.

    Args:
        sources: In order.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._ends: list[int] = []

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Make all of them ready.

        Raises:
            FileNotFoundError: As theirs.
            ValueError: As theirs.
        """
        for source in self.sources:
            source.prepare(progress)
        self._ends = list(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        """How many samples all of them have."""
        return self._counted()[-1]

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, those of the first source first.

        Raises:
            ValueError: The sample is damaged; one line that names it and says how.
            IndexError: There is no such number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}, there are {len(self)}")
        which, number = self._place(index)
        return self.sources[which][number]

    def shards(self) -> Sequence[int]:
        """Those of all of them."""
        return [count for source in self.sources for count in source.shards()]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Tell each which of its own come next."""
        asked: dict[int, list[int]] = {}
        for which, number in map(self._place, indices):
            asked.setdefault(which, []).append(number)
        for which, numbers in asked.items():
            self.sources[which].prefetch(numbers)

    def faults(self) -> Sequence[Damaged]:
        """What their preparation found to be unusable."""
        return [fault for source in self.sources for fault in getattr(source, "faults", tuple)()]

    def _place(self, index: int) -> tuple[int, int]:
        """The source that has a sample, and the sample's number there."""
        ends = self._counted()
        which = bisect_right(ends, index)
        return which, index - (ends[which - 1] if which else 0)

    def _counted(self) -> list[int]:
        if not self._ends:
            self.prepare()
        return self._ends
