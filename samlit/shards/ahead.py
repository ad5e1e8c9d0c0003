"""What will be asked for next, begun before it is: so that nobody waits for a server more than once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

__all__ = ["Ahead"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Ahead(Generic[K, V]):
    """Reads by key, in a few threads of its own.

    Args:
        fetch: Reads what a key names; called by several threads at once.
        threads: How many.
        most: Reads that are under way or wait to be taken, at most.
    """

    def __init__(self, fetch: Callable[[K], V], threads: int = 8, most: int = 64) -> None:
        self.fetch, self.threads, self.most = fetch, threads, most
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._begun: dict[K, Future[V]] = {}
        self._queue: SimpleQueue[tuple[K, Future[V]]] = SimpleQueue()
        self._running = 0

    def hint(self, keys: Sequence[K]) -> None:
        """Begin to read what these keys name, in this order, as far as there is room."""
        self._wake()
        with self._lock:
            wanted = set(keys)
            for key in keys:
                if key in self._begun:
                    continue
                if len(self._begun) >= self.most:
                    idle = next((old for old in self._begun if old not in wanted), None)
                    if idle is None:
                        break
                    self._begun.pop(idle).cancel()
                future: Future[V] = Future()
                self._begun[key] = future
                self._queue.put((key, future))
            while self._running < min(self.threads, len(self._begun)):
                # Not a pool of the standard library's: the interpreter waits for those when it ends.
                threading.Thread(target=self._work, daemon=True).start()
                self._running += 1

    def take(self, key: K) -> V:
        """What a key names: read already, or now."""
        self._wake()
        with self._lock:
            future = self._begun.pop(key, None)
        if future is None or future.cancel():  # nobody has begun it yet
            return self.fetch(key)
        return future.result()

    def _wake(self) -> None:
        """Begin anew in a process that was forked: it has the promises, and not the threads that keep them."""
        if self._process != os.getpid():
            self._begin()

    def _work(self) -> None:
        queue = self._queue
        while True:
            key, future = queue.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.fetch(key))
                except BaseException as error:
                    future.set_exception(error)
