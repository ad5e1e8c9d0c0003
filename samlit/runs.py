"""Run lengths out of COCO's compressed strings, of many masks at once, every string checked before it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged

__all__ = ["GROUPS", "MAX_PIXELS", "MAX_SIDE", "checked_size", "ends", "ends_of_one", "insides"]

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
def ends_of_one(size: tuple[int, int], text: str) -> Int64:
    """Where each run of one mask ends, read-only; remembered for the strings that were asked for last.

    Raises:
        Damaged: The string is not sound; one line that says what is wrong with it.
    """
    found, _ = ends(size, [text])
    found.setflags(write=False)
    return found


def ends(size: tuple[int, int], texts: Sequence[str]) -> tuple[Int64, Int64]:
    """Where each run of K masks of one size ends.

    Args:
        size: Rows and columns, checked.
        texts: K strings.

    Returns:
        (all runs,) column-major pixels, mask after mask, each counted from its mask's own first pixel; and (K,) how
        many runs each mask has.

    Raises:
        Damaged: A string is not sound; one line that says what is wrong with it.
    """
    pixels = size[0] * size[1]
    if not texts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
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
    first = np.cumsum(num) - num
    # From the fourth on, the difference to the run two before is stored: two interleaved sums a mask undo it. The
    # sums go on from mask to mask, and what the masks before have summed up to is taken off.
    counts = values.copy()
    for begin in (1, 2):
        length = np.maximum(num - begin + 1, 0) // 2
        stop = np.cumsum(length)
        step = np.repeat(first + begin - 2 * (stop - length), length)
        step += 2 * np.arange(len(step))
        total = np.cumsum(values[step])
        before = np.concatenate([np.zeros(1, np.int64), total])[stop - length]
        counts[step] = total - np.repeat(before, length)
    if counts.min() < 0 or counts.max() > pixels:
        raise Damaged("rle", "RLE has a run that is negative or longer than the mask")
    found = np.cumsum(counts)
    last = found[first + num - 1]
    sums = np.diff(last, prepend=0)
    wrong = np.flatnonzero(sums != pixels)
    if len(wrong):
        raise Damaged("rle", f"RLE runs sum to {sums[wrong[0]]}, not to {size[0]}x{size[1]}")
    found -= np.repeat(last - pixels, num)
    return found, num


def insides(ends: Int64, num: Int64) -> tuple[Int64, Int64, Int64]:
    """The runs that are inside their masks: the mask's number, where each begins, and where it has stopped.

    Args:
        ends: (all runs,) where each run ends, as `ends` gives it.
        num: (K,) how many runs each mask has.
    """
    pairs = num // 2  # every second run is inside; a last one without a partner is outside
    owner = np.repeat(np.arange(len(num)), pairs)
    index = np.repeat(np.cumsum(num) - num - 2 * (np.cumsum(pairs) - pairs), pairs)
    index += 2 * np.arange(len(index))
    return owner, ends[index], ends[index + 1]


def _numbers(texts: Sequence[str]) -> tuple[Int64, Int64]:
    """The numbers that are written in all strings, and how many are in each: five bits a character, the last a sign."""
    joined = "".join(texts)
    if not joined.isascii():
        raise Damaged("rle", "RLE string has a character outside '0'..'o'")
    small = np.frombuffer(joined.encode("ascii"), np.uint8) - np.uint8(48)  # below "0" wraps around to 208 and up
    if small.max() > 63:
        raise Damaged("rle", "RLE string has a character outside '0'..'o'")
    final = small < 32  # bit 5 clear: the number ends here
    stop = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    if not final[stop - 1].all():
        raise Damaged("rle", "RLE string ends in the middle of a number")
    last = np.flatnonzero(final)
    length = np.diff(last, prepend=-1)
    most = int(length.max())
    if most > GROUPS:
        raise Damaged("rle", "RLE string has a number that is too long")
    first = last - (length - 1)
    bits = small & np.uint8(31)
    values = bits[first].astype(np.int64)
    negative = np.flatnonzero(bits[last] & 16)
    for group in range(1, most):
        has = np.flatnonzero(length > group)
        values[has] |= bits[first[has] + group].astype(np.int64) << (5 * group)
    values[negative] -= np.int64(1) << (5 * length[negative])
    before = np.searchsorted(last, stop)
    return values, np.diff(before, prepend=0)
