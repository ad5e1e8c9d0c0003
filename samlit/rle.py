"""Masks as COCO run-length strings, read and written with NumPy, every string checked before it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "Rle",
    "area",
    "box",
    "decode",
    "draw",
    "encode",
    "encode_labels",
    "encode_many",
    "from_uncompressed",
    "runs",
]

MAX_SIDE = 1 << 16
"""Rows or columns that a string may claim."""
MAX_PIXELS = 1 << 30
"""Rows times columns that a string may claim."""

_GROUPS = 7  # groups of five bits: enough for any run of MAX_PIXELS, and for the difference of two

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rle:
    """A mask as a string, as in COCO and SA-1B (SAM_SPEC 4).

    Attributes:
        size: Rows and columns.
        counts: COCO's compressed string: column-major runs, zeros first.
    """

    size: tuple[int, int]
    counts: str


def encode(mask: npt.ArrayLike) -> Rle:
    """The string of one mask, byte for byte what the COCO tools write.

    Args:
        mask: (H, W), bool or numbers of which all but 0 are in the mask.

    Raises:
        ValueError: The mask is not two-dimensional, or has no pixel, or too many.
    """
    array = np.asarray(mask)
    if array.ndim != 2:
        raise ValueError(f"a mask has two dimensions, this one has shape {array.shape}")
    return encode_many(array[None])[0]


def encode_many(masks: npt.ArrayLike) -> list[Rle]:
    """The strings of K masks of one size, all at once.

    Args:
        masks: (K, H, W), bool or numbers of which all but 0 are in the mask.

    Raises:
        ValueError: The masks are not three-dimensional, or have no pixel, or too many.
    """
    array = np.asarray(masks)
    if array.ndim != 3:
        raise ValueError(f"masks have shape (K, H, W), these have {array.shape}")
    num, height, width = array.shape
    size = _checked_size((height, width))
    if num == 0:
        return []
    flat = (array if array.dtype == np.bool_ else array != 0).transpose(0, 2, 1).reshape(num, -1)
    # True where a run ends: at 0 too when the mask begins inside, for the first run counts zeros, even none.
    edge = np.ones((num, height * width + 1), np.bool_)
    edge[:, 0] = flat[:, 0]
    np.not_equal(flat[:, 1:], flat[:, :-1], out=edge[:, 1:-1])
    row, ends = np.nonzero(edge)
    return _strings(row, ends, num, size)


def encode_labels(labels: npt.ArrayLike) -> tuple[npt.NDArray[Any], list[Rle]]:
    """The strings of all masks of a label map, in one pass over its pixels however many there are.

    Args:
        labels: (H, W) of integers; the pixels of one value, other than 0, are one mask.

    Returns:
        The values that occur, ascending, and the mask of each.

    Raises:
        ValueError: The map is not two-dimensional or not of integers, or has no pixel, or too many.
    """
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"a label map has two dimensions and integers, this is {array.dtype} of shape {array.shape}")
    size = _checked_size(array.shape)
    flat = array.T.reshape(-1)
    # The map is cut into runs of one value. A mask's own runs end where those of its value begin and end.
    begin = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    stop = np.append(begin[1:], flat.size)
    inside = np.flatnonzero(flat[begin])
    if not len(inside):
        return flat[:0], []
    values, row = np.unique(flat[begin[inside]], return_inverse=True)
    order = np.argsort(row, kind="stable")
    begin, stop, row = begin[inside[order]], stop[inside[order]], row[order]
    last = np.flatnonzero(np.append(row[1:] != row[:-1], True))
    last = last[stop[last] < flat.size]  # zeros follow, to the mask's end
    ends = np.insert(np.stack([begin, stop], 1).ravel(), 2 * last + 2, flat.size)
    return values, _strings(np.insert(np.repeat(row, 2), 2 * last + 2, row[last]), ends, len(values), size)


def from_uncompressed(size: Sequence[int], counts: Sequence[int]) -> Rle:
    """The string of a mask that is given as a list of runs, COCO's uncompressed form.

    Args:
        size: Rows and columns.
        counts: Lengths of the runs, column-major, zeros first.

    Raises:
        ValueError: They are no mask of that size.
    """
    height, width = _checked_size(size)
    if len(counts) > height * width + 1:
        raise ValueError(f"RLE has {len(counts)} runs, more than {height}x{width} pixels can have")
    if any(isinstance(count, bool) or not isinstance(count, (int, np.integer)) for count in counts):
        raise ValueError("RLE runs are not all integers")
    if any(not 0 <= count <= height * width for count in counts):
        raise ValueError("RLE has a run that is negative or longer than the mask")
    ends = np.cumsum(np.asarray(counts, np.int64))
    if not len(ends) or ends[-1] != height * width:
        raise ValueError(f"RLE runs sum to {int(ends[-1]) if len(ends) else 0}, not to {height}x{width}")
    return _strings(np.zeros(len(ends), np.int64), ends, 1, (height, width))[0]


def runs(rle: Rle) -> Int64:
    """Where each run ends, (number of runs,) int64 in column-major pixels, read-only, from a string now proved sound.

    Runs alternate and begin outside the mask: pixels `runs[0]` up to, not including, `runs[1]` are the first inside.

    Raises:
        ValueError: One line that says what is wrong with the string.
    """
    if not isinstance(rle.counts, str):
        raise ValueError(f"RLE counts are {type(rle.counts).__name__}, not a string")
    return _runs(*_checked_size(rle.size), rle.counts)


# Sources check every string and drawing needs its runs again: the strings of one record at least are remembered.
@lru_cache(maxsize=1024)
def _runs(height: int, width: int, text: str) -> Int64:
    pixels = height * width
    if not text:
        raise ValueError("RLE counts are empty")
    if len(text) > _GROUPS * (pixels + 1):
        raise ValueError(f"RLE string of {len(text)} characters is too long for {height}x{width} pixels")
    if not text.isascii():
        raise ValueError("RLE string has a character outside '0'..'o'")
    small = np.frombuffer(text.encode("ascii"), np.uint8) - np.uint8(48)  # what is below "0" wraps around to 208 and up
    if small.max() > 63:
        raise ValueError("RLE string has a character outside '0'..'o'")
    last = np.flatnonzero(small < 32)  # bit 5 clear: the number ends here
    if not len(last) or last[-1] != len(small) - 1:
        raise ValueError("RLE string ends in the middle of a number")
    first = np.zeros_like(last)
    first[1:] = last[:-1] + 1
    length = last - first + 1
    if length.max() > _GROUPS:
        raise ValueError("RLE string has a number that is too long")
    if len(length) > pixels + 1:
        raise ValueError(f"RLE has {len(length)} runs, more than {height}x{width} pixels can have")
    code = small.astype(np.int64)
    place = np.arange(len(code)) - np.repeat(first, length)
    counts = np.add.reduceat((code & 31) << (5 * place), first)
    counts -= ((code[last] & 16) != 0) * (np.int64(1) << (5 * length))
    # From the fourth on, the difference to the run two before is stored: two interleaved sums undo it.
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    if counts.min() < 0 or counts.max() > pixels:
        raise ValueError("RLE has a run that is negative or longer than the mask")
    ends = np.cumsum(counts)
    if ends[-1] != pixels:
        raise ValueError(f"RLE runs sum to {int(ends[-1])}, not to {height}x{width}")
    ends.setflags(write=False)
    return ends


def decode(rle: Rle) -> Bool:
    """The mask, (H, W) bool, column-major in memory as the string is.

    Raises:
        ValueError: The string is not sound.
    """
    ends = runs(rle)
    height, width = rle.size
    return _fill(ends).reshape(width, height).T


def draw(rle: Rle, size: tuple[int, int], window: tuple[slice, slice] | None = None) -> Bool:
    """The mask sampled on another grid, without writing the full mask where the grid is smaller.

    The same as `decode`, cut to the window, and torch's "nearest-exact", pixel for pixel: output pixel i shows the
    input pixel that its centre lies in.

    Args:
        rle: The mask, of any size.
        size: (h, w) of the grid.
        window: Rows and columns of the mask that the grid shows, not empty; all of it if not given.

    Returns:
        (h, w) bool.

    Raises:
        ValueError: The string is not sound, or the grid is empty.
    """
    ends = runs(rle)
    height, width = rle.size
    whole = slice(0, height), slice(0, width)
    rows, columns = window or whole
    if size == rle.size and (rows, columns) == whole:
        return _fill(ends).reshape(width, height).T
    if min(size) < 1:
        raise ValueError(f"a mask cannot be drawn on a grid of {size[0]}x{size[1]}")
    _, rows_before, row_times = _sampled(height, size[0], rows.start, rows.stop)
    column_is, columns_before, column_times = _sampled(width, size[1], columns.start, columns.stop)
    # A run's end, from pixels of the mask to samples: those of whole columns before it, and of its own column.
    column, row = np.divmod(ends, height)
    at = columns_before[column] * len(row_times) + np.where(column_is[column], rows_before[row], 0)
    grid = _fill(at).reshape(len(column_times), len(row_times))
    if len(row_times) < size[0]:
        grid = np.repeat(grid, row_times, axis=1)
    if len(column_times) < size[1]:
        grid = np.repeat(grid, column_times, axis=0)
    return grid.T


def area(rle: Rle) -> int:
    """How many pixels are in the mask.

    Raises:
        ValueError: The string is not sound.
    """
    ends = runs(rle)
    inside = ends[1::2]
    return int((inside - ends[::2][: len(inside)]).sum())


def box(rle: Rle) -> tuple[int, int, int, int]:
    """The box around the mask, xyxy in whole pixels, x1 and y1 exclusive; (0, 0, 0, 0) for an empty mask.

    Raises:
        ValueError: The string is not sound.
    """
    ends = runs(rle)
    height = rle.size[0]
    stop = ends[1::2]
    start = ends[::2][: len(stop)]
    some = stop > start
    if not some.any():
        return 0, 0, 0, 0
    left, top = np.divmod(start[some], height)
    right, bottom = np.divmod(stop[some] - 1, height)
    x0, x1 = int(left[0]), int(right[-1]) + 1
    if (left != right).any():  # a run goes on in the next column: it has that one's first row and this one's last
        return x0, 0, x1, height
    return x0, int(top.min()), x1, int(bottom.max()) + 1


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns, if they are two integers within the limits."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"RLE size is not two numbers: {str(size)[:60]}")
    if any(isinstance(side, bool) or not isinstance(side, (int, np.integer)) for side in size):
        raise ValueError(f"RLE size is not two integers: {str(size)[:60]}")
    height, width = int(size[0]), int(size[1])
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ValueError(f"RLE size {height}x{width} is outside 1..{MAX_SIDE} a side, {MAX_PIXELS} pixels in all")
    return height, width


def _fill(ends: Int64) -> Bool:
    """Runs written out: False up to the first end, True up to the second, and so on."""
    inside = np.zeros(len(ends), np.bool_)
    inside[1::2] = True
    return np.repeat(inside, np.diff(ends, prepend=0))


def _strings(row: Int64, ends: Int64, num: int, size: tuple[int, int]) -> list[Rle]:
    """The strings of `num` masks from all their runs' ends, mask after mask; `row` tells which mask each belongs to."""
    per_mask = np.bincount(row, minlength=num)
    first = np.cumsum(per_mask) - per_mask
    counts = np.diff(ends, prepend=0)
    counts[first] = ends[first]
    values = counts.copy()
    late = np.flatnonzero(np.arange(len(ends)) - first[row] > 2)
    values[late] -= counts[late - 2]
    # A number needs a group more at each power of 32 that it reaches, one bit being its sign.
    magnitude = values ^ (values >> 63)
    length = np.ones(len(values), np.int64)
    for group in range(1, _GROUPS):
        length += magnitude >= np.int64(1) << (5 * group - 1)
    stop = np.cumsum(length)
    code = np.empty(int(stop[-1]), np.uint8)
    for group in range(int(length.max())):
        has = np.flatnonzero(length > group)
        more = (length[has] > group + 1) * 32
        code[stop[has] - length[has] + group] = ((values[has] >> (5 * group)) & 31) + more + 48
    text = code.tobytes().decode("ascii")
    begin = (stop - length)[first].tolist()
    return [Rle(size, text[a:b]) for a, b in zip(begin, [*begin[1:], len(text)], strict=True)]


@lru_cache(maxsize=256)
def _sampled(source: int, target: int, start: int, stop: int) -> tuple[Bool, Int64, Int64]:
    """Which pixels of an axis of `source` pixels, those from `start` to before `stop`, a grid of `target` shows.

    Returns:
        (source + 1,) whether a pixel is shown, the last entry being the end; (source + 1,) how many shown ones lie
        before it; and for each shown one how often.
    """
    # In float32 as torch computes it, so that ties fall to the same side.
    scale = np.float32(stop - start) / np.float32(target)
    shown = np.floor((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale).astype(np.int64)
    times = np.bincount(np.minimum(start + shown, stop - 1), minlength=source + 1)
    is_shown = times > 0
    return is_shown, np.cumsum(is_shown) - is_shown, times[is_shown]
