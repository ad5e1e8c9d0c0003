"""Some of a source's samples, chosen at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged
from samlit.source import Sample, Source

__all__ = ["Sampled"]


class Sampled(Source):
    """So many of a source's samples, or all if there are no more; the same ones every time, in their own order.

    Args:
        source: All samples.
        count: How many are wanted.
        seed: Of the choice.
    """

    def __init__(self, source: Source, count: int, seed: int = 0) -> None:
        self.source, self.count, self.seed = source, count, seed
        self._chosen: npt.NDArray[np.int64] | None = None

    def prepare(self, progress: Callable[[int, int, str], None] = lambda done, total, what: None) -> None:
        """Make the source ready, and choose.

        Raises:
            FileNotFoundError: As the source's.
            ValueError: As the source's.
        """
        if self._chosen is None:
            self.source.prepare(progress)
            order = np.random.default_rng(self.seed).permutation(len(self.source))
            self._chosen = np.sort(order[: self.count])

    def __len__(self) -> int:
        """How many were chosen."""
        return len(self._numbers())

    def __getitem__(self, index: int) -> Sample:
        """The chosen sample number `index`.

        Raises:
            ValueError: The sample is damaged; one line that names it and says how.
            IndexError: There is no such number.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}, there are {len(self)}")
        return self.source[int(self._numbers()[index])]

    def prefetch(self, indices: Sequence[int]) -> None:
        """Hand the hint on."""
        self.source.prefetch([int(self._numbers()[index]) for index in indices])

    def faults(self) -> Sequence[Damaged]:
        """What the source's preparation found to be unusable."""
        return self.source.faults()

    def _numbers(self) -> npt.NDArray[np.int64]:
        self.prepare()
        assert self._chosen is not None
        return self._chosen
