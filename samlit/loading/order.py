"""Which sample comes when: an endless order that is computed from the seed, never stored, and entered anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Mixed", "Order", "Shuffled", "Taken"]

Int64 = npt.NDArray[np.int64]


class Taken(NamedTuple):
    """Some positions of an order.

    Attributes:
        passes: (n,) int64, how many times all samples of its source had come before.
        samples: (n,) int64, numbers of samples.
    """

    passes: Int64
    samples: Int64


class Order(Protocol):
    """Samples at positions 0, 1, 2, ... without end; each a function of the position alone.

    Attributes:
        epoch: Samples of an epoch where nobody says otherwise.
    """

    epoch: int

    def take(self, start: int, stop: int) -> Taken:
        """The samples from a position to before another, in order."""


class Shuffled:
    """Pass after pass over all samples: shards shuffled, and then samples within a buffer.

    In a pass every sample comes once. The shards are put in random order end to end, that row is cut into pieces as
    long as the buffer, and each piece is shuffled: a sample lands anywhere in its piece, and whoever reads in this
    order needs the shards of one piece at a time. What fits into one buffer is shuffled as a whole.

    Args:
        shards: Samples of each shard.
        seed: All chance comes from it.
        buffer: Samples that are shuffled together.

    Raises:
        ValueError: The buffer holds no sample.
    """

    def __init__(self, shards: Sequence[int], seed: int, buffer: int) -> None:
        if buffer < 1:
            raise ValueError(f"shuffle_buffer: one sample at least, not {buffer}")
        self.sizes = np.asarray(shards, np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
        self.count = self.epoch = int(self.sizes.sum())
        self.seed, self.buffer = seed, buffer
        self._row: tuple[int, Int64, Int64] | None = None
        self._piece: tuple[int, int, Int64] | None = None

    def take(self, start: int, stop: int) -> Taken:
        """The samples from a position to before another, in order."""
        passes, samples = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            number, at = divmod(start, self.count)
            piece, at = divmod(at, self.buffer)
            found = self._shuffled(number, piece)[at : at + stop - start]
            passes.append(np.full(len(found), number))
            samples.append(found)
            start += len(found)
        return Taken(np.concatenate(passes), np.concatenate(samples))

    def _shuffled(self, number: int, piece: int) -> Int64:
        """The samples of a piece of a pass; the last one that was asked for is remembered."""
        if self._piece is None or self._piece[:2] != (number, piece):
            first = piece * self.buffer
            length = min(self.buffer, self.count - first)
            # A seed's trailing zeros change nothing: what fits into one buffer is a permutation of (seed, pass).
            at = first + np.random.default_rng([self.seed, number, piece]).permutation(length)
            if length < self.count:
                row, ends = self._shards(number)
                place = np.searchsorted(ends, at, side="right")
                shard = row[place]
                at = self.first[shard] + at - (ends[place] - self.sizes[shard])
            self._piece = number, piece, at
        return self._piece[2]

    def _shards(self, number: int) -> tuple[Int64, Int64]:
        """The shards of a pass in their order, and where each ends in the row."""
        if self._row is None or self._row[0] != number:
            row = np.random.default_rng([self.seed, number, 0, 1]).permutation(len(self.sizes))
            self._row = number, row, np.cumsum(self.sizes[row])
        return self._row[1], self._row[2]


class Mixed:
    """Several orders at once, each with its share, each going through its own samples pass after pass.

    Every BLOCK samples and at the end of every epoch each order has come as often as its share says, give or take
    what cannot be divided; in between it is chance which comes next.

    Args:
        orders: At least one.
        shares: Of the samples, one an order; they sum to 1.
        first: Added to the numbers of each order's samples.
        seed: All chance comes from it.
        epoch: Samples of an epoch.
    """

    BLOCK = 1024

    def __init__(
        self, orders: Sequence[Order], shares: Sequence[Fraction], first: Sequence[int], seed: int, epoch: int
    ) -> None:
        self.orders, self.shares, self.first = list(orders), list(shares), list(first)
        self.seed, self.epoch = seed, epoch
        self._last: tuple[int, int, Taken] | None = None

    def take(self, start: int, stop: int) -> Taken:
        """The samples from a position to before another, in order."""
        passes, samples = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        while start < stop:
            epoch, at = divmod(start, self.epoch)
            block, at = divmod(at, self.BLOCK)
            found = self._mixed(epoch, block)
            passes.append(found.passes[at : at + stop - start])
            samples.append(found.samples[at : at + stop - start])
            start += len(samples[-1])
        return Taken(np.concatenate(passes), np.concatenate(samples))

    def _mixed(self, epoch: int, block: int) -> Taken:
        """A block of an epoch; the last one that was asked for is remembered."""
        if self._last is None or self._last[:2] != (epoch, block):
            start = block * self.BLOCK
            length = min(self.BLOCK, self.epoch - start)
            start += epoch * self.epoch
            ranges = zip(self.orders, self.counts(start), self.counts(start + length), strict=True)
            taken = [order.take(before, after) for order, before, after in ranges]
            which = np.repeat(np.arange(len(taken)), [len(some.samples) for some in taken])
            which = np.random.default_rng([self.seed, epoch, block, 2]).permutation(which)
            # Each order's own samples stay in their order.
            place = np.empty(length, np.int64)
            place[np.argsort(which, kind="stable")] = np.arange(length)
            passes = np.concatenate([some.passes for some in taken])
            samples = np.concatenate([some.samples + first for some, first in zip(taken, self.first, strict=True)])
            self._last = epoch, block, Taken(passes[place], samples[place])
        return self._last[2]

    def counts(self, position: int) -> list[int]:
        """How often each order came before a position."""
        counts, rest, left = [], Fraction(1), position
        for share in self.shares[:-1]:
            # Of what earlier orders left, this one's part: every count grows with the position, and they sum to it.
            count = left if share >= rest else int(left * share / rest)
            counts.append(count)
            rest, left = rest - share, left - count
        return [*counts, left]
