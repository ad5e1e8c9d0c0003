"""What is made of images in the background, before somebody asks for it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Ahead"]

T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes something of each image in one thread: what is waited for first, then the neighbours of what is looked at.

    Args:
        make: Makes it of the image of that number; slow. What it raises is raised by `ask`.
        count: How many images there are.
        stamp: Tells one state of an image from another; quick. What was made of another state is made again.
        ahead: How many images after the one that is looked at are made ready; the one before it, too.
        kept: How many results are kept in memory.
    """

    def __init__(
        self, make: Callable[[int], T], count: int, stamp: Callable[[int], object], ahead: int = 4, kept: int = 8
    ) -> None:
        self._make, self._count, self._stamp, self._ahead, self._kept = make, count, stamp, ahead, max(kept, ahead + 2)
        self._changed = threading.Condition()
        self._made: OrderedDict[int, tuple[object, T | Exception]] = OrderedDict()
        self._wanted: list[int] = []
        self._at: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="samlit-ahead")
        self._thread.start()

    def look(self, number: int) -> None:
        """Somebody looks at this image: it and its neighbours are to be made."""
        with self._changed:
            self._at = number
            self._changed.notify_all()

    def ask(self, number: int, seconds: float | None = None) -> T | None:
        """What is made of an image, waited for.

        Args:
            number: The image's.
            seconds: At most; without end if not given.

        Returns:
            It, or None where it is not ready in time.

        Raises:
            Exception: What making it raised; the next one who asks has it made again.
        """
        stamp = self._stamp(number)
        with self._changed:
            if number in self._made and self._made[number][0] != stamp:
                del self._made[number]
            if number not in self._made:
                self._wanted.append(number)
                self._changed.notify_all()
                self._changed.wait_for(lambda: number in self._made or self._closed, seconds)
                self._wanted.remove(number)
            if number not in self._made:
                return None
            self._made.move_to_end(number)
            found = self._made[number][1]
            if isinstance(found, Exception):
                del self._made[number]
                raise found
            return found

    def close(self) -> None:
        """Begin nothing more; what is being made is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=60)

    def _next(self) -> int | None:
        """The image to be made next; None where all that is near is ready."""
        if self._wanted and (waited := next((n for n in self._wanted if n not in self._made), None)) is not None:
            return waited
        if self._at is None:
            return None
        near = [self._at, *range(self._at + 1, self._at + 1 + self._ahead), self._at - 1]
        return next((n for n in near if 0 <= n < self._count and n not in self._made), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._next() is None:
                    self._changed.wait()
                number = self._next()
                if self._closed or number is None:
                    return
            found: T | Exception
            stamp = self._stamp(number)  # of before: what changes meanwhile is made again
            try:
                found = self._make(number)
            except Exception as error:  # raised to whoever asks
                found = error
            with self._changed:
                self._made[number] = stamp, found
                while len(self._made) > self._kept:
                    self._made.popitem(last=False)
                self._changed.notify_all()
