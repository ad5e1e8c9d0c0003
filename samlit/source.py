"""Where images and masks come from: Source, one of the contracts, and the Sample that it yields. Without torch.

Whoever only reads and writes files (`samlit shards make`, and each of its processes) neither waits for torch nor holds
it in memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samlit.faults import Damaged, blaming
from samlit.loading.images import Encoded
from samlit.loading.order import Order, Shuffled
from samlit.masks.rle import Rle

__all__ = ["Sample", "Source"]


@dataclass(frozen=True)
class Sample:
    """One image and its masks, as a source yields them: masks stay strings until they are drawn.

    Attributes:
        key: Names the sample within its source.
        image: (H, W, 3) uint8, RGB; or still in its file, to be decoded no finer than it is wanted.
        masks: One run-length string a mask, each of the image's own size.
        phrases: A phrase for each mask ("the striped wheel of the red cart"), or none at all.
        shard: The file that it is in, for whoever has to find it; empty where the key says enough.
        numbers: Which mask of what is stored each one is, counted from 0, where some were left out; else none.
        boundaries: What each of several people drew as the boundaries in the image, of its own size, where there is
            such a thing.
    """

    key: str
    image: np.ndarray | Encoded
    masks: tuple[Rle, ...]
    phrases: tuple[str, ...] = ()
    shard: str = ""
    boundaries: tuple[Rle, ...] = ()
    numbers: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        rows, columns = self.image.size if isinstance(self.image, Encoded) else self.image.shape[:2]
        return rows, columns

    def pixels(self, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """The image, (rows, columns, 3) uint8: all of it, or no fewer rows and columns than are wanted.

        Raises:
            Damaged: It cannot be decoded.
        """
        if not isinstance(self.image, Encoded):
            return self.image
        with blaming(self.key, self.shard):
            return self.image.pixels(at_least)


class Source(ABC):
    """Samples by number: where images and masks come from.

    A source opens nothing heavy when it is built: the parser builds it, and workers receive it by pickle.
    """

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, from 0.

        Raises:
            ValueError: The sample is damaged; one line that names it and says how. `Damaged` also says by what cause.
        """

    def shards(self) -> Sequence[int]:
        """How many samples lie together, one number a shard, in order: shards are shuffled, then samples in a buffer.

        Without an override all lie in one.
        """
        return (len(self),)

    def order(self, seed: int, buffer: int) -> Order:
        """In which order a training sees the samples, without end; of no interest to most sources.

        Args:
            seed: All chance comes from it.
            buffer: Samples that are shuffled together.
        """
        return Shuffled(self.shards(), seed, buffer)

    def faults(self) -> Sequence[Damaged]:
        """What is known to be unusable once the source is prepared, and is none of its samples."""
        return ()

    def prefetch(self, indices: Sequence[int]) -> None:  # noqa: B027 - most sources have nothing to fetch
        """Samples that will be asked for next, in this order; a hint that a source of slow reads begins them at."""

    def prepare(  # noqa: B027 - most sources have nothing to make ready
        self, progress: Callable[[int, int, str], None] = lambda done, total, what: None
    ) -> None:
        """Make ready what must exist once a machine (written, indexed, downloaded), atomically; free if it exists.

        Args:
            progress: Told (done, total, what is being done), for a progress bar.

        Raises:
            FileNotFoundError: Something that the person named is not there.
            ValueError: It is there and is not usable; one line that says why.
        """
