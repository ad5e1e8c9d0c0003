"""Several sources as one, each as often as is wanted (paper section 7.6; SAM_SPEC 2.6)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate

from samlit.faults import Damaged
from samlit.loading.order import Mixed, Order
from samlit.source import Sample, Source

__all__ = ["Mix"]


class Mix(Source):
    """Several sources mixed, with weights or with repetitions.

    Each source is gone through in its own order, pass after pass, whatever the others do. An epoch has as many samples
    as all sources have, repetitions counted; `data.epoch_size` says otherwise.

    Args:
        sources: What is mixed.
        repeat: How often each comes an epoch, one number a source: the paper repeats what people drew ten times. 2.5 is
            two passes and a half. All of them once if not given.
        weights: Shares of the samples instead, one number a source, in any proportion.
    """

    def __init__(
        self, sources: list[Source], repeat: list[float] | None = None, weights: list[float] | None = None
    ) -> None:
        if not sources:
            raise ValueError("sources: one at least")
        if repeat and weights:
            raise ValueError("repeat or weights, not both: weights are shares of the samples, whatever the sizes")
        for name, numbers in (("repeat", repeat), ("weights", weights)):
            if numbers and len(numbers) != len(sources):
                raise ValueError(f"{name}: one number a source, {len(sources)}, not {len(numbers)}")
            if numbers and not all(0 < number < 1e6 for number in numbers):
                raise ValueError(f"{name}: numbers above 0, not {numbers}; leave a source out that is not wanted")
        self.sources, self.repeat, self.weights = sources, repeat, weights

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Make all sources ready, one after the other.

        Args:
            progress: Told what each source tells.
        """
        for source in self.sources:
            source.prepare(progress)

    def __len__(self) -> int:
        """Samples of all sources, each counted once."""
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, one source after the other.

        Raises:
            IndexError: There are not so many.
        """
        source, number = self._place(index)
        return source[number]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Hand the hint on, to each source what is its own."""
        asked: dict[int, tuple[Source, list[int]]] = {}
        for index in indices:
            source, number = self._place(index)
            asked.setdefault(id(source), (source, []))[1].append(number)
        for source, numbers in asked.values():
            source.prefetch(numbers)

    def order(self, seed: int, buffer: int) -> Order:
        """All sources' orders, mixed."""
        counts = [len(source) for source in self.sources]
        repeat = map(_exact, self.repeat or [1.0] * len(counts))
        parts = [count * number for count, number in zip(counts, repeat, strict=True)]
        epoch = round(sum(parts))
        if self.weights:
            parts = [_exact(number) for number in self.weights]
        used = [i for i, count in enumerate(counts) if count]
        whole = sum(parts[i] for i in used)
        first = [0, *accumulate(counts)]
        orders = [self.sources[i].order(seed, buffer) for i in used]
        return Mixed(orders, [parts[i] / whole for i in used], [first[i] for i in used], seed, epoch)

    def faults(self) -> Sequence[Damaged]:
        """What all sources know to be unusable."""
        return [fault for source in self.sources for fault in source.faults()]

    def _place(self, index: int) -> tuple[Source, int]:
        ends = list(accumulate(len(source) for source in self.sources))
        if not 0 <= index < ends[-1]:
            raise IndexError(f"the sources have {ends[-1]} samples, there is no number {index}")
        which = bisect_right(ends, index)
        return self.sources[which], index - ends[which] + len(self.sources[which])


def _exact(number: float) -> Fraction:
    """The fraction that a person meant: 0.1 is a tenth."""
    return Fraction(str(number)).limit_denominator(10**6)
