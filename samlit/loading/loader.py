"""A data loader that knows where it is: the order of samples is computed, never stored, and resumes in mid-epoch."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from samlit.errors import one_line
from samlit.faults import Damaged, blaming
from samlit.loading import frames
from samlit.loading.augment import Augment
from samlit.loading.embedding_cache import Embeddings
from samlit.loading.frames import Framed
from samlit.loading.order import Order
from samlit.loading.quarantine import Quarantine
from samlit.source import Sample, Source
from samlit.structures import Batch

__all__ = ["Loader", "rank_and_world"]


class Loader:
    """Packed batches of a source, the same for the same seed whatever the number of workers.

    A training's samples are the source's endless order, cut into epochs. A global batch is a range of positions, of
    which each rank takes its share, so every rank has the same number of batches, and the last one of an epoch may be
    smaller. The state is (epoch, samples asked for by all ranks), so that it fits any rank and any number of them, and
    going on costs nothing however far it is.

    A sample that is damaged is left out of its batch, and nothing takes its place: what else is in a batch never
    depends on it. A batch that has none left is one blank image without masks, for other ranks wait for this one.

    Args:
        source: Samples by number.
        side: Of the frame, pixels.
        batch_size: Images a batch and rank.
        seed: All chance comes from it.
        rank: Of this process.
        world: How many processes.
        workers: Loader processes; 0 loads in this one.
        training: Shuffles, draws masks at random and augments; otherwise samples come in order, each once over all
            ranks.
        max_masks: Most masks of an image, drawn at random while training, the first ones otherwise.
        max_area: Masks that cover more of the image than this share are dropped while training (paper appendix A).
        augment: What chance does to an image while training.
        pin_memory: Whether batches are put into page-locked memory.
        shuffle_buffer: Samples that are shuffled together; shards are shuffled before.
        epoch_size: Samples of an epoch, over all ranks; what the source says if not given, mostly each one once.
        quarantine: Where samples that are left out are counted; if not given, the first one is an error.
        kept: The images' embeddings, which batches then have; a training does not decode the images.
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
        shuffle_buffer: int = 16384,
        epoch_size: int | None = None,
        quarantine: Quarantine | None = None,
        kept: Embeddings | None = None,
    ) -> None:
        order = source.order(seed, shuffle_buffer) if training else None
        size = (epoch_size or order.epoch) if order else len(source)
        self.place = _Place(order, size, batch_size, rank, world, ahead=max(workers, 1))
        self.quarantine = quarantine
        self._samples = _Samples(source, side, seed, training, max_masks, max_area, augment, kept)
        asked: Any = self.place  # torch's types know batches of lists only
        self._loader: DataLoader[Any] = DataLoader(
            self._samples,
            batch_sampler=asked,
            collate_fn=_Made.of,
            num_workers=workers,
            pin_memory=pin_memory,
            multiprocessing_context=_context() if workers else None,
            worker_init_fn=_end_with_the_run,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.place)

    def __iter__(self) -> Iterator[Batch]:
        """What is left of the epoch, or all of the next one."""
        self.place.begin()
        for made in self._loader:
            self._leave_out(made.faults, made.asked)
            self.place.advance()
            yield made.batch()
        if self.quarantine:
            self.quarantine.report()

    def _leave_out(self, faults: list[Damaged], asked: int) -> None:
        if self.quarantine:
            self.quarantine.add(faults, asked)
        elif faults:
            raise faults[0]

    def state_dict(self) -> dict[str, Any]:
        """Where it is; the same on every rank."""
        return {"epoch": self.place.epoch, "samples": self.place.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with any number of ranks or workers."""
        self.place.epoch, self.place.done = state["epoch"], state["samples"]


def _context() -> multiprocessing.context.BaseContext:
    """How workers begin: as forks of a process that has imported what they need and done nothing else.

    They begin at once, and share the memory of it. Forks of this process would inherit locks of the threads that torch
    has already started.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_the_run(worker: int) -> None:
    """Torch looks whether the parent of a worker lives; the parent of these is not the run."""

    def watch() -> None:
        if (run := multiprocessing.parent_process()) is not None:
            run.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Ask(NamedTuple):
    """A sample to make: its number, and which pass over its source this is."""

    number_of_pass: int
    sample: int


class _Batch(NamedTuple):
    """What a worker is asked for: the samples of a batch, and those of the batch that it will be asked for next."""

    now: list[_Ask]
    next: list[_Ask]


class _Place:
    """Where a loader is in its order, and what this rank's batches from there on are made of.

    Apart from the loader, which would be in a cycle of references otherwise, and its workers would be ended late.

    Args:
        order: Of a training; samples come by number if there is none, and only once.
        size: Samples of an epoch.
        batch_size: Of each rank.
        rank: Of this process.
        world: How many processes.
        ahead: After how many batches the same worker is asked again.
    """

    def __init__(self, order: Order | None, size: int, batch_size: int, rank: int, world: int, ahead: int) -> None:
        self.order, self.size, self.step = order, size, batch_size * world
        self.rank, self.world, self.ahead = rank, world, ahead
        self.epoch = self.done = 0

    def begin(self) -> None:
        """Go on in the epoch, or go to the next one where nothing is left of it."""
        if self.order is None:
            self.epoch = self.done = 0
        elif self.done >= self.size:
            self.epoch, self.done = self.epoch + 1, 0

    def advance(self) -> None:
        """A batch was given out."""
        self.done = min(self.done + self.step, self.size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-self.size // self.step)

    def __iter__(self) -> Iterator[_Batch]:
        """The batches that are left, as torch's loader asks for them."""
        waiting: list[list[_Ask]] = []
        for at in range(self.done, self.size, self.step):
            waiting.append(self._asks(at))
            if len(waiting) > self.ahead:
                yield _Batch(waiting.pop(0), waiting[-1])
        for batch in waiting:
            yield _Batch(batch, [])

    def _asks(self, at: int) -> list[_Ask]:
        """This rank's part of the global batch at a position of the epoch."""
        start, stop = (self.epoch * self.size + position for position in (at, min(at + self.step, self.size)))
        if self.order is None:
            passes, samples = np.zeros(stop - start, np.int64), np.arange(start, stop)
        else:
            passes, samples = self.order.take(start, stop)
        mine = slice(self.rank, None, self.world)
        return [_Ask(*ask) for ask in zip(passes[mine].tolist(), samples[mine].tolist(), strict=True)]


class _Samples(Dataset[Framed]):
    """Samples in the frame, a batch at a time."""

    def __init__(
        self,
        source: Source,
        side: int,
        seed: int,
        training: bool,
        max_masks: int,
        max_area: float,
        augment: Augment,
        kept: Embeddings | None,
    ) -> None:
        self.source, self.side, self.seed, self.training = source, side, seed, training
        self.max_masks, self.max_area, self.augment, self.kept = max_masks, max_area, augment, kept

    def __getitems__(self, batch: _Batch) -> list[Framed | Damaged]:
        """The samples of a batch, or what is wrong with them; a blank image where there are none."""
        self.source.prefetch([ask.sample for ask in (*batch.now, *batch.next)])
        made = [self._made(ask) for ask in batch.now]
        if not any(isinstance(one, Framed) for one in made):
            made.append(frames.frame(Sample("", np.zeros((self.side, self.side, 3), np.uint8), ()), self.side))
        return made

    def _made(self, ask: _Ask) -> Framed | Damaged:
        key = shard = ""
        try:
            with blaming(f"number {ask.sample}"):
                sample = self.source[ask.sample]
            key, shard = sample.key, sample.shard
            with blaming(key, shard):
                framed = self._framed(sample, ask)
            if self.kept is None:
                return framed
            return replace(framed, embedding=self.kept.read(ask.sample, framed.mirrored))
        except Damaged as error:
            # Without its cause: that may not come through pickle.
            return Damaged(error.cause, error.message, error.key, error.shard)
        except OSError as error:
            return Damaged("unreadable", one_line(error), key or f"number {ask.sample}", shard)

    def _framed(self, sample: Sample, ask: _Ask) -> Framed:
        if not self.training:
            return frames.frame(sample, self.side, range(min(len(sample.masks), self.max_masks)))
        chance = np.random.default_rng([self.seed, ask.number_of_pass, ask.sample])
        return self.augment.frame(sample, self.side, self.max_masks, chance, self.max_area, pixels=self.kept is None)


@dataclass
class _Made:
    """A batch that is not yet packed: pictures and strokes cross from a worker, not the masks, which are far more.

    Attributes:
        samples: At least one; from a worker, their pickle in shared memory.
        faults: What was left out.
        asked: Samples that it was asked for.
        packed: The batch, once it is.
    """

    samples: list[Framed] | Tensor
    faults: list[Damaged]
    asked: int
    packed: Batch | None = None

    @classmethod
    def of(cls, made: Sequence[Framed | Damaged]) -> _Made:
        """Sort what was made."""
        samples = [one for one in made if not isinstance(one, Damaged)]
        asked = len(made) - sum(not one.key for one in samples)
        faults = [one for one in made if isinstance(one, Damaged)]
        if get_worker_info() is None:
            return cls(samples, faults, asked)
        # A pipe holds 64 kB: a worker that waits for room in it would outlive a loader's process that was killed.
        return cls(torch.frombuffer(bytearray(pickle.dumps(samples)), dtype=torch.uint8), faults, asked)

    def pin_memory(self) -> _Made:
        """Pack it into page-locked memory; called by the data loader's own thread, while the device computes."""
        self.packed = self._pack(pinned=True)
        return self

    def batch(self) -> Batch:
        """The batch, packed now if it was not."""
        return self.packed or self._pack(pinned=False)

    def _pack(self, pinned: bool) -> Batch:
        here = self.samples
        samples: list[Framed] = pickle.loads(here.numpy().data) if isinstance(here, Tensor) else here
        return frames.pack(samples, pinned=pinned)


def rank_and_world() -> tuple[int, int]:
    """This process's rank and how many there are; 0 and 1 where nothing is distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
