"""From low-res logits to a mask's runs in one pass that never writes full-size logits; compiled by numba.

SAM enlarges logits twice, bilinearly: to the frame, whose part with picture is cut out, then to the image. Both are
linear along each axis, so together they are one linear map an axis with at most four weights, none below zero. A value
therefore lies between the least and the greatest of the low-res values that it is made of: where those agree, a whole
stretch of a column is settled by one look.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from samlit.jitted import jitted

__all__ = ["Outline", "Tracer"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
TAPS = 4
NOTHING = np.float32(-1e30)
"""A logit below every threshold."""


class Outline(NamedTuple):
    """A mask of full size.

    Attributes:
        ends: Where its runs end, column-major, the first one outside the mask.
        area: Pixels above the threshold,
        inner: above the threshold and the offset,
        outer: above the threshold less the offset.
        box: x0, y0, x1, y1, the last pixel included; zeros where the mask is empty.
    """

    ends: Int64
    area: int
    inner: int
    outer: int
    box: tuple[int, int, int, int]


class Axis(NamedTuple):
    """How an axis of the image is made of one of the low-res logits.

    Attributes:
        first: (n,) int32, the first of the four low-res values that a pixel is made of.
        weight: (n, 4) float32.
        start: (low + 1,) int64, the first pixel whose first value is that one or a later one.
    """

    first: npt.NDArray[np.int32]
    weight: Float32
    start: Int64


class Tracer:
    """Masks of low-res logits over a frame, at the size of the image in it; not for several threads at once.

    Args:
        low: Rows and columns of the low-res logits, four at least.
        side: Of the frame, pixels, not less.
        part: Rows and columns of the frame that show the image.
        size: Rows and columns of the image.
    """

    def __init__(self, low: tuple[int, int], side: int, part: tuple[int, int], size: tuple[int, int]) -> None:
        self.y, self.x = (axis(low[i], side, part[i], size[i]) for i in (0, 1))
        self.low, self.size = low, size
        self._ends = np.empty(1 << 16, np.int64)
        self._column, self._turned = np.empty(low[0], np.float32), np.empty(low[::-1], np.float32)

    def __call__(self, logits: Float32, threshold: float, offset: float) -> Outline:
        """The mask of one map of logits, (4h, 4w)."""
        np.subtract(logits.T, np.float32(threshold), out=self._turned)
        while True:
            counts = _trace(self._turned, *self.x, *self.y, np.float32(offset), self._ends, self._column)
            if counts[0]:
                break
            self._ends = np.empty(4 * len(self._ends), np.int64)  # more runs than there was room for
        runs, area, inner, outer, *box = counts
        x0, y0, x1, y1 = box
        return Outline(self._ends[:runs].copy(), area, inner, outer, (x0, y0, x1, y1) if area else (0, 0, 0, 0))


@lru_cache(64)
def axis(low: int, side: int, part: int, size: int) -> Axis:
    """The two enlargements of an axis as one: low -> side, its first `part` -> size."""
    one, other, share = _bilinear(part, size)
    near, far, fraction = _bilinear(low, side)
    # Of each of two pixels of the frame the two low-res values, four in all, with the products of the weights.
    places = np.stack([near[one], far[one], near[other], far[other]], 1)
    weights = np.stack(
        [
            (1 - share) * (1 - fraction[one]),
            (1 - share) * fraction[one],
            share * (1 - fraction[other]),
            share * fraction[other],
        ],
        1,
    )
    first = np.minimum(places.min(1), low - TAPS)
    joined = np.zeros((size, TAPS))
    for tap in range(TAPS):
        np.add.at(joined, (np.arange(size), np.where(weights[:, tap] > 0, places[:, tap] - first, 0)), weights[:, tap])
    start = np.searchsorted(first, np.arange(low + 1)).astype(np.int64)
    return Axis(first.astype(np.int32), joined.astype(np.float32), start)


def _bilinear(source: int, target: int) -> tuple[Int64, Int64, npt.NDArray[np.float64]]:
    """Which two values of an axis a pixel lies between, and how far from the first one; rounded as by torch."""
    half = np.float32(0.5)
    at = np.maximum((np.arange(target, dtype=np.float32) + half) * np.float32(source / target) - half, 0)
    first = np.minimum(at.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), (at - first.astype(np.float32)).astype(np.float64)


@jitted()
def _trace(
    low: Float32,
    first_x: Any,
    weight_x: Float32,
    start_x: Int64,
    first_y: Any,
    weight_y: Float32,
    start_y: Int64,
    offset: np.float32,
    ends: Int64,
    column: Float32,
) -> tuple[int, int, int, int, int, int, int, int]:
    """Runs (into `ends`), area, pixels above offset and above -offset, box; no runs where there is no room.

    `low` is (columns, rows), less the threshold. `column` is room for one column.
    """
    wide, high = low.shape
    columns, rows = first_x.size, first_y.size
    # Columns and rows of the low-res logits in which there is anything.
    left, right, top, bottom = wide, -1, high, -1
    for i in range(wide):
        for j in range(high):
            if low[i, j] > -offset:
                left, right = min(left, i), i
                top, bottom = min(top, j), max(bottom, j)
    if right < 0:
        ends[0] = columns * rows
        return 1, 0, 0, 0, 0, 0, 0, 0
    j0, j1 = max(0, top - TAPS), min(high, bottom + TAPS + 1)
    count, area, inner, outer = 0, 0, 0, 0
    x0, y0, x1, y1 = columns, rows, -1, -1
    inside = False
    for x in range(columns):
        base = x * rows
        if count + rows + 2 > ends.size:
            return 0, 0, 0, 0, 0, 0, 0, 0
        b = first_x[x]
        if b + TAPS - 1 < left or b > right:
            if inside:
                ends[count] = base
                count += 1
                inside = False
            continue
        a0, a1, a2, a3 = weight_x[x, 0], weight_x[x, 1], weight_x[x, 2], weight_x[x, 3]
        for j in range(j0, j1):
            column[j] = a0 * low[b, j] + a1 * low[b + 1, j] + a2 * low[b + 2, j] + a3 * low[b + 3, j]
        if j0 > 0 and inside:  # what is above is outside
            ends[count] = base
            count += 1
            inside = False
        for k in range(j0, min(j1, high - TAPS + 1)):
            begin, end = start_y[k], start_y[k + 1]
            if begin == end:
                continue
            c0 = column[k]
            c1 = column[k + 1] if k + 1 < j1 else NOTHING
            c2 = column[k + 2] if k + 2 < j1 else NOTHING
            c3 = column[k + 3] if k + 3 < j1 else NOTHING
            least, most = min(min(c0, c1), min(c2, c3)), max(max(c0, c1), max(c2, c3))
            if most <= -offset:
                if inside:
                    ends[count] = base + begin
                    count += 1
                    inside = False
            elif least > offset:
                if not inside:
                    ends[count] = base + begin
                    count += 1
                    inside = True
                area += end - begin
                inner += end - begin
                outer += end - begin
                y0, y1 = min(y0, begin), max(y1, end - 1)
                x0, x1 = min(x0, x), x
            else:
                for y in range(begin, end):
                    value = weight_y[y, 0] * c0 + weight_y[y, 1] * c1 + weight_y[y, 2] * c2 + weight_y[y, 3] * c3
                    if value > -offset:
                        outer += 1
                        if value > offset:
                            inner += 1
                    if value > 0:
                        area += 1
                        if not inside:
                            ends[count] = base + y
                            count += 1
                            inside = True
                        y0, y1 = min(y0, y), max(y1, y)
                        x0, x1 = min(x0, x), x
                    elif inside:
                        ends[count] = base + y
                        count += 1
                        inside = False
        # Of an image much smaller than the low-res logits the next row may lie far below: outside.
        if inside and j1 <= high - TAPS and start_y[j1] < rows:
            ends[count] = base + start_y[j1]
            count += 1
            inside = False
    ends[count] = columns * rows
    count += 1
    return count, area, inner, outer, x0, y0, x1, y1
