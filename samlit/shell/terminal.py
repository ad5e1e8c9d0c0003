"""What a person sees: one look for lines, notes, errors and tables. Colours are for terminals, and `--quiet` is heard.

What a command found is on stdout; what it says of itself is on stderr, in lines that begin with `samlit:`.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "alive",
    "coloured",
    "facts",
    "fail",
    "is_quiet",
    "note",
    "number",
    "say",
    "show",
    "silenced",
    "table",
    "tell",
]

WIDE = 200
"""Columns of a table where there is no terminal: nothing is broken in two that a program or a person may read."""
RED, YELLOW, DIM = "31", "33", "2"

_quiet = False


@contextmanager
def silenced(quiet: bool = True) -> Iterator[None]:
    """Say only what went wrong and what was asked for, as long as this lasts: `--quiet`."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether the person wants neither bars nor notes."""
    return _quiet


def alive(stream: IO[str]) -> bool:
    """Whether it can be drawn over, as a bar does.

    Not what rich takes for such: FORCE_COLOR is set where lines cannot be drawn over, as in a notebook.
    """
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def coloured(stream: IO[str]) -> bool:
    """Whether it shows colours, and the person wants them; in a pipe or a file there are none, ever."""
    return alive(stream) and not os.environ.get("NO_COLOR")


def say(line: str) -> None:
    """A line about what was done, on stdout."""
    if not _quiet:
        print(line, flush=True)


def tell(line: str) -> None:
    """A line about how far it is, on stderr."""
    if not _quiet:
        _line(DIM, line)


def note(line: str) -> None:
    """Something that is good to know, on stderr."""
    if not _quiet:
        _line(YELLOW, f"note: {line}")


def fail(line: str, rank: str | int = 0) -> None:
    """What went wrong, on stderr, always.

    Args:
        line: What, and what to do.
        rank: Of the process among those of a run.
    """
    _line(RED, line if str(rank) == "0" else f"rank {rank}: {line}")


def _line(colour: str, line: str) -> None:
    name = f"\x1b[{colour}msamlit:\x1b[0m" if coloured(sys.stderr) else "samlit:"
    print(f"{name} {line}", file=sys.stderr, flush=True)


def table(first: str, *others: str, left: Collection[str] = ()) -> Table:
    """A table with nothing in it yet.

    Args:
        first: Head of the first column, which names the rows.
        others: Heads of the others, numbers as a rule and so to the right.
        left: Those of them that are words.
    """
    from rich.table import Table

    made = Table(box=None, header_style="dim", pad_edge=False)
    made.add_column(first, overflow="fold")
    for name in others:
        made.add_column(name, justify="left" if name in left else "right", overflow="fold")
    return made


def number(value: float | None) -> str:
    """A number as it stands in a table: three digits behind the point, counts none."""
    if value is None or not math.isfinite(value):  # such as AP of large things where there are none
        return "" if value is None else "-"
    return f"{value:.0f}" if value == int(value) and abs(value) > 1 else f"{value:.3f}"


def facts(of: Mapping[str, str]) -> str:
    """What there is to say of one thing, a line each."""
    width = max(map(len, of))
    return "\n".join(f"{name:{width}}  {told}" for name, told in of.items())


def show(*things: Any) -> None:
    """What was asked for, on stdout, always: text as it is, and tables and whatever else rich can draw."""
    for thing in things:
        print(thing if isinstance(thing, str) else _drawn(thing), flush=True)


def _drawn(thing: Any) -> str:
    from rich.console import Console

    drawn, colours = StringIO(), coloured(sys.stdout)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    console = Console(
        file=drawn,
        width=width,
        force_terminal=colours,
        color_system="auto" if colours else None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(thing)
    return "\n".join(line.rstrip() for line in drawn.getvalue().rstrip("\n").split("\n"))
