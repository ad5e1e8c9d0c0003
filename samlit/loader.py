"""A data loader that knows where it is: the order of samples is computed, never stored, and resumes in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from samlit import frames
from samlit.augment import Augment
from samlit.contracts import Source
from samlit.structures import Batch, Sample

__all__ = ["Loader"]

_BLANK = -1


class Loader:
    """Packed batches of a source, the same for the same seed whatever the number of workers.

    Position p of epoch e is one sample, a pure function of (seed, e, p); a global batch is a range of positions, and
    each rank takes its slice of it. Every rank has the same number of batches. The state is (epoch, samples consumed
    by all ranks), so that it fits any rank and any number of them.

    Args:
        source: Samples by number.
        side: Of the frame, pixels.
        batch_size: Images a batch and rank.
        seed: All chance comes from it.
        rank: Of this process.
        world: How many processes.
        workers: Loader processes; 0 loads in this one.
        training: Shuffles, draws masks at random, augments, and drops the samples that fill no global batch; otherwise
            samples come in order, each once over all ranks.
        max_masks: Most masks of an image, drawn at random while training, the first ones otherwise.
        max_area: Masks that cover more of the image than this share are dropped while training (paper appendix A).
        augment: What chance does to an image while training.
        pin_memory: Whether batches are put into page-locked memory.
    """

    def __init__(
        self,
        source: Source,
        side: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        training: bool = True,
        max_masks: int = 64,
        max_area: float = 0.9,
        augment: Augment = Augment(),  # noqa: B008 - frozen
        pin_memory: bool = False,
    ) -> None:
        self.count, self.batch_size, self.seed = len(source), batch_size, seed
        self.rank, self.world, self.workers, self.training = rank, world, workers, training
        self.pin_memory = pin_memory
        self.samples = _Samples(source, side, seed, training, max_masks, max_area, augment)
        self.epoch = self.done = 0

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        step = self.batch_size * self.world
        return self.count // step if self.training else -(-self.count // step)

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch, or all of the next one."""
        step = self.batch_size * self.world
        if not self.training:
            self.epoch = self.done = 0
        elif self.count - self.done < step:
            self.epoch, self.done = self.epoch + 1, 0
        loader = DataLoader(
            self.samples,
            batch_sampler=self._batches(self.epoch, self.done),
            collate_fn=frames.pack,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            # Forked workers inherit locks of the threads that torch has already started.
            multiprocessing_context="spawn" if self.workers else None,
        )
        for batch in loader:
            self.done += step
            yield batch

    def _batches(self, epoch: int, start: int) -> Iterable[list[tuple[int, int]]]:
        """This rank's (epoch, number of sample) of each batch, from a position on."""
        step, order = self.batch_size * self.world, self._order()
        end = len(order) - step + 1 if self.training else len(order)
        for at in range(start, end, step):
            # Where the last samples do not suffice for all ranks, the others take one blank image without masks.
            yield [(epoch, int(i)) for i in order[at + self.rank : at + step : self.world]] or [(epoch, _BLANK)]

    def _order(self) -> np.ndarray:
        if not self.training:
            return np.arange(self.count)
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.count)

    def state_dict(self) -> dict[str, Any]:
        """Where it is; the same on every rank."""
        return {"epoch": self.epoch, "samples": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with any number of ranks or workers."""
        self.epoch, self.done = state["epoch"], state["samples"]


class _Samples(Dataset[frames.Framed]):
    """Samples by (epoch, number), in the frame."""

    def __init__(
        self, source: Source, side: int, seed: int, training: bool, max_masks: int, max_area: float, augment: Augment
    ) -> None:
        self.source, self.side, self.seed, self.training = source, side, seed, training
        self.max_masks, self.max_area, self.augment = max_masks, max_area, augment

    def __getitem__(self, at: tuple[int, int]) -> frames.Framed:
        epoch, index = at
        if index == _BLANK:
            nothing = Sample("", np.zeros((self.side, self.side, 3), np.uint8), ())
            return frames.frame(nothing, self.side)
        sample = self.source[index]
        if not self.training:
            return frames.frame(sample, self.side, range(min(len(sample.masks), self.max_masks)))
        chance = np.random.default_rng([self.seed, epoch, index])
        return self.augment.frame(sample, self.side, self.max_masks, chance, self.max_area)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; 0 and 1 where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
