"""A bar for long work, or now and then a line in a log; light, for most who want one need nothing of Lightning."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from samlit.shell import terminal

__all__ = ["bar", "clock", "drawn"]

EVERY = 30.0
"""Seconds between two lines about the same work, where there is no terminal to draw a bar in."""


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar that appears with its first report: call (done, total, what is being done).

    Where stderr is no terminal, a line every half minute and one at the end; with `--quiet` nothing.
    """
    if terminal.is_quiet():
        yield lambda done, total, what: None
        return
    with _drawn() if terminal.alive(sys.stderr) else _told() as report:
        yield report


def drawn() -> Progress:
    """Bars as all of samlit's are: what is done, how far, and in words how long still, or what a task's `text` says."""
    console = Console(stderr=True, no_color=not terminal.coloured(sys.stderr))
    columns = TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), _Words()
    return Progress(*columns, console=console)


class _Words(ProgressColumn):
    """A task's own words; where it has none, the time that is left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Say it."""
        if "text" in task.fields:
            return Text(task.fields["text"])
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{clock(left)} left")


def clock(seconds: float) -> str:
    """Like 1:02:03 or 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def _drawn() -> Iterator[Callable[[int, int, str], None]]:
    progress = drawn()
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
def _told() -> Iterator[Callable[[int, int, str], None]]:
    told: dict[str, float] = {}
    ended = set[str]()

    def report(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        last = told.setdefault(what, now)
        if what not in ended and (done >= total or now - last >= EVERY):
            told[what] = now
            if done >= total:
                ended.add(what)
            terminal.tell(f"{what} {done}/{total}")

    yield report
