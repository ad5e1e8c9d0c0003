"""Masks on a grid as vertical strokes, and the strokes as pixels: what lies between two run ends is never visited.

A run of a mask is a stretch of pixels in column-major order; on the grid that a mask is wanted at it is a few vertical
strokes, or none. Strokes tell a mask's area before a pixel of it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from samlit.masks.runs import insides

__all__ = ["Strokes", "strokes"]

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

_WORD = 8  # pixels that are filled at a time


class Strokes(NamedTuple):
    """One mask on a grid.

    Attributes:
        area: How many pixels of the grid are in it.
        rows: First row of the grid with a pixel of it, and the row after the last.
        columns: The same of the columns.
        begins: Where strokes begin, and
        stops: where they have stopped: pixels of the box that rows and columns give, one row added at its end and its
            rows widened to whole words.
    """

    area: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    begins: Int64
    stops: Int64

    def draw(self, into: Bytes) -> None:
        """Write it into (rows, columns) uint8 of the grid, any view, that is zero before: 1 where the mask is."""
        if not self.area:
            return
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        words = -(-width // _WORD)
        box = np.zeros((height + 1) * words * _WORD, np.uint8)
        box[self.begins] = 1
        box[self.stops] ^= 1  # not 1: a stroke may begin where the one above it stops
        filled = box.view(np.uint64).reshape(height + 1, words)[:height]
        np.bitwise_xor.accumulate(filled, 0, out=filled)
        pixels = filled.view(np.uint8)[:, :width]
        into[self.rows[0] : self.rows[1], self.columns[0] : self.columns[1]] = pixels


def strokes(
    size: tuple[int, int], texts: Sequence[str], grid: tuple[int, int], window: tuple[slice, slice] | None = None
) -> list[Strokes]:
    """The strokes of K masks of one size.

    The same pixels as the whole mask, cut to the window, and torch's "nearest-exact": pixel i of the grid shows the
    pixel of the mask that its centre lies in.

    Args:
        size: Rows and columns of the masks, checked.
        texts: K strings.
        grid: Rows and columns that are wanted, at least one each.
        window: Rows and columns of the masks that the grid shows, not empty; all if not given.

    Raises:
        Damaged: A string is not sound; one line that says what is wrong with it.
    """
    height, width = size
    rows, columns = window or (slice(0, height), slice(0, width))
    row_at = _shown_before(height, grid[0], rows.start, rows.stop)
    column_at = _shown_before(width, grid[1], columns.start, columns.stop)
    start, stop, num = insides(size, texts)
    owner = np.repeat(np.arange(len(num)), num)
    first, last = start // height, (stop - 1) // height
    here = column_at[last + 1] > column_at[first]  # in a column that is shown
    here &= stop > start
    chosen = np.flatnonzero(here)
    owner, start, stop, first, last = (values[chosen] for values in (owner, start, stop, first, last))
    top, bottom = row_at[start - first * height], row_at[stop - last * height]
    # A run that goes on in further columns goes to the bottom of the grid in all but the last, and from its top in all
    # but the first; and a column of the mask may be shown in several of the grid, or in none.
    begin, end = column_at[first], column_at[last + 1]
    if (len(chosen) and (end - begin).max() > 1) or (last != first).any():
        length = end - begin
        which = np.repeat(np.arange(len(length)), length)
        column = np.arange(len(which)) - np.repeat(np.cumsum(length) - length - begin, length)
        owner, top, bottom = owner[which], top[which], bottom[which]
        top[column >= column_at[first + 1][which]] = 0
        bottom[column < column_at[last][which]] = grid[0]
    else:
        column = begin
    some = np.flatnonzero(bottom > top)
    return _each(len(num), owner[some], column[some], top[some], bottom[some])


def _each(count: int, owner: Int64, column: Int64, top: Int64, bottom: Int64) -> list[Strokes]:
    """By mask, from the strokes of all, which are in the order of their owners and columns."""
    num = np.bincount(owner, minlength=count)
    stop = np.cumsum(num)
    begin = stop - num
    filled = np.flatnonzero(num)  # reduceat wants no empty stretches
    box = np.zeros((4, count), np.int64)
    area = np.zeros(count, np.int64)
    if len(filled):
        at = begin[filled]
        box[0, filled] = np.minimum.reduceat(top, at)
        box[1, filled] = np.maximum.reduceat(bottom, at)
        box[2, filled] = column[at]
        box[3, filled] = column[stop[filled] - 1] + 1
        area[filled] = np.add.reduceat(bottom - top, at)
    stride = -(-(box[3] - box[2]) // _WORD) * _WORD
    across = column - box[2][owner]
    high, pitch = box[0][owner], stride[owner]
    begins = (top - high) * pitch + across
    stops = (bottom - high) * pitch + across
    return [
        Strokes(covered, (y0, y1), (x0, x1), begins[a:b], stops[a:b])
        for covered, (y0, y1, x0, x1), a, b in zip(
            area.tolist(), box.T.tolist(), begin.tolist(), stop.tolist(), strict=True
        )
    ]


@lru_cache(maxsize=256)
def _shown_before(source: int, target: int, start: int, stop: int) -> Int64:
    """How many of the `target` pixels of a grid show a pixel of the mask before each: (source + 1,).

    The grid shows those from `start` to before `stop` of an axis of `source` pixels.
    """
    # In float32 as torch computes it, so that ties fall to the same side.
    scale = np.float32(stop - start) / np.float32(target)
    shown = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    times = np.bincount(np.minimum(start + shown, stop - 1), minlength=source)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(times)])
