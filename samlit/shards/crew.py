"""Work that is shared out among processes or threads, and its results as they come."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["work"]

T = TypeVar("T")
R = TypeVar("R")


def work(function: Callable[[T], R], items: Sequence[T], jobs: int, threads: bool = False) -> Iterator[tuple[int, R]]:
    """Call a function with each item.

    Args:
        function: Can be pickled, as items and results can, where there are processes.
        items: In the order in which they are begun.
        jobs: How many at once; with 1 all is done by the caller.
        threads: Not processes: for work that waits.

    Yields:
        The number of an item and what the function made of it, as they come.
    """
    left = dict.fromkeys(range(len(items)))
    jobs = min(jobs, len(items))
    if jobs > 1:
        # Spawned, not forked: a fork of a process with threads (torch has some) may hang.
        spawn = multiprocessing.get_context("spawn")
        pool: Executor = (
            ThreadPoolExecutor(jobs) if threads else ProcessPoolExecutor(jobs, spawn, initializer=_ended_by_interrupts)
        )
        try:
            waiting = {pool.submit(function, item): number for number, item in enumerate(items)}
            for future in as_completed(waiting):
                number = waiting.pop(future)
                result = future.result()
                del left[number]
                yield number, result
        except BrokenProcessPool:
            # A script without `if __name__ == "__main__"` cannot be spawned from; this process can still do it.
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    for number in list(left):
        yield number, function(items[number])


def _ended_by_interrupts() -> None:
    """Ctrl-C, which a terminal sends to all, ends a worker at once and without a word: what it writes is atomic."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
