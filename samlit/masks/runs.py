"""Run lengths out of COCO's compressed strings, of many masks at once, every string checked before it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged

__all__ = ["GROUPS", "MAX_PIXELS", "MAX_SIDE", "checked_size", "ends", "insides"]

MAX_SIDE = 1 << 16
"""Rows or columns that a string may claim."""
MAX_PIXELS = 1 << 30
"""Rows times columns that a string may claim."""

GROUPS = 7
"""Groups of five bits that a number may have: enough for any run of MAX_PIXELS, and for the difference of two."""

Int64 = npt.NDArray[np.int64]


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns, if they are two integers within the limits.

    Raises:
        Damaged: They are not.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise Damaged("rle", f"RLE size is not two numbers: {str(size)[:60]}")
    if any(isinstance(side, bool) or not isinstance(side, (int, np.integer)) for side in size):
        raise Damaged("rle", f"RLE size is not two integers: {str(size)[:60]}")
    height, width = int(size[0]), int(size[1])
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_PIXELS):
        limits = f"1..{MAX_SIDE} a side, {MAX_PIXELS} pixels in all"
        raise Damaged("rle", f"RLE size {height}x{width} is outside {limits}")
    return height, width


# Whoever asks for a mask's area asks for its box next.
@lru_cache(maxsize=1024)
def ends(size: tuple[int, int], text: str) -> Int64:
    """Where each run of one mask ends, read-only; remembered for the strings that were asked for last.

    Raises:
        Damaged: The string is not sound; one line that says what is wrong with it.
    """
    pairs, _, num = _pairs(size, [text])
    found = pairs.reshape(-1)[: num[0]]
    found.setflags(write=False)
    return found


def insides(size: tuple[int, int], texts: Sequence[str]) -> tuple[Int64, Int64, Int64]:
    """The runs that lie inside K masks of one size, mask after mask; some may be empty.

    Args:
        size: Rows and columns, checked.
        texts: K strings.

    Returns:
        Where each run begins and where it has stopped, in column-major pixels counted from its own mask's first one,
        and how many runs each mask has, (K,).

    Raises:
        Damaged: A string is not sound; one line that says what is wrong with it.
    """
    pairs, rows, _ = _pairs(size, texts)
    return pairs[:, 0], pairs[:, 1], rows


def _pairs(size: tuple[int, int], texts: Sequence[str]) -> tuple[Int64, Int64, Int64]:
    """(R, 2) ends of two runs each, one outside and one inside, how many of the R are each mask's, and its runs.

    Where a mask has an odd number of runs, one more without a pixel is added.
    """
    pixels = size[0] * size[1]
    if not texts:
        return np.zeros((0, 2), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for text in texts:
        if not isinstance(text, str):
            raise Damaged("rle", f"RLE counts are {type(text).__name__}, not a string")
        if not text:
            raise Damaged("rle", "RLE counts are empty")
        if len(text) > GROUPS * (pixels + 1):
            raise Damaged("rle", f"RLE string of {len(text)} characters is too long for {size[0]}x{size[1]} pixels")
    values, num = _numbers(texts)
    if num.max() > pixels + 1:
        raise Damaged("rle", f"RLE has {num.max()} runs, more than {size[0]}x{size[1]} pixels can have")
    odd = num % 2 == 1
    values = np.insert(values, np.cumsum(num)[odd], 0).reshape(-1, 2)
    rows = (num + 1) // 2
    stop = np.cumsum(rows)
    first = stop - rows
    # From the fourth on, the difference to the run two before is stored: sums down the two columns undo it. They go on
    # from mask to mask, so what the masks before have summed up to is taken off.
    begin = values[first, 0]
    values[first, 0] = 0
    head = values[first]
    counts = np.cumsum(values, 0, out=values)
    counts -= np.repeat(counts[first] - head, rows, 0)
    counts[first, 0] = begin
    counts[stop[odd] - 1, 1] = 0
    if counts.min() < 0 or counts.max() > pixels:
        raise Damaged("rle", "RLE has a run that is negative or longer than the mask")
    found = counts
    np.cumsum(counts.reshape(-1), out=found.reshape(-1))
    last = found[stop - 1, 1]
    sums = np.diff(last, prepend=0)
    wrong = np.flatnonzero(sums != pixels)
    if len(wrong):
        raise Damaged("rle", f"RLE runs sum to {sums[wrong[0]]}, not to {size[0]}x{size[1]}")
    found -= np.repeat(last - pixels, rows)[:, None]
    return found, rows, num


def _numbers(texts: Sequence[str]) -> tuple[Int64, Int64]:
    """The numbers that are written in all strings, and how many are in each: five bits a character, the last a sign."""
    joined = "".join(texts)
    if not joined.isascii():
        raise Damaged("rle", "RLE string has a character outside '0'..'o'")
    small = np.frombuffer(joined.encode("ascii"), np.uint8) - np.uint8(48)  # below "0" wraps around to 208 and up
    if small.max() > 63:
        raise Damaged("rle", "RLE string has a character outside '0'..'o'")
    more = small > 31  # bit 5: the number goes on
    stop = list(accumulate(map(len, texts)))
    if more[np.array(stop) - 1].any():
        raise Damaged("rle", "RLE string ends in the middle of a number")
    groups, on = 1, more
    while on.any():
        groups += 1
        if groups > GROUPS:
            raise Damaged("rle", "RLE string has a number that is too long")
        on = on[:-1] & more[groups - 1 :]
    final = ~more
    bits = (small & np.uint8(31)).view(np.int8)
    bits -= (bits & np.int8(16)) * np.int8(2) * final.view(np.int8)  # a number's last bit is worth -16
    # In few bytes, for arrays that leave the processor's cache are what costs time here.
    digits: npt.NDArray[Any] = bits.astype(np.int16 if groups < 4 else np.int32 if groups < 7 else np.int64)
    weight = (more.view(np.int8) * np.int8(32)).astype(digits.dtype)[:-1]
    values = digits
    for _ in range(1, groups):  # what follows a character is worth 32 times as much
        following = values[1:] * weight
        values = digits.copy()
        values[:-1] += following
    num = [np.count_nonzero(final[begin:end]) for begin, end in pairwise([0, *stop])]
    first = np.concatenate([[True], final[:-1]])
    return values[first].astype(np.int64), np.array(num)
