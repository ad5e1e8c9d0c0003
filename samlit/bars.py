"""A bar for long work, or now and then a line in a log; light, for most who want one need nothing of Lightning."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["bar"]

EVERY = 30.0
"""Seconds between two lines about the same work, where there is no terminal to draw a bar in."""


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar that appears with its first report: call (done, total, what is being done).

    Where stderr is no terminal, a line every half minute and one at the end.
    """
    console = Console(stderr=True)
    # Not what rich takes for one: FORCE_COLOR is set where lines cannot be drawn over, as in a notebook.
    with _drawn(console) if sys.stderr.isatty() else _told(console) as report:
        yield report


@contextmanager
def _drawn(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    tasks: dict[str, TaskID] = {}

    def report(done: int, total: int, what: str) -> None:
        if not tasks:
            progress.start()
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()


@contextmanager
def _told(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    told: dict[str, float] = {}
    ended = set[str]()

    def report(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        last = told.setdefault(what, now)
        if what not in ended and (done >= total or now - last >= EVERY):
            told[what] = now
            if done >= total:
                ended.add(what)
            console.print(f"{what} {done}/{total}", highlight=False, soft_wrap=True)

    yield report
