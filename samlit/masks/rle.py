"""Masks as COCO run-length strings, read, drawn and written with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samlit.faults import Damaged
from samlit.masks.runs import GROUPS, MAX_PIXELS, MAX_SIDE, checked_size, ends, insides
from samlit.masks.strokes import Strokes, strokes

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "Rle",
    "area",
    "box",
    "boxes",
    "decode",
    "draw",
    "encode",
    "encode_labels",
    "encode_many",
    "from_ends",
    "from_uncompressed",
    "intersections",
    "moved",
    "runs",
    "sketch",
]

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
    size = checked_size((height, width))
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
    size = checked_size(array.shape)
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
    height, width = checked_size(size)
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


def from_ends(ends: Sequence[Int64], size: tuple[int, int]) -> list[Rle]:
    """The strings of masks of one size that are given by where their runs end, as of `runs`; all at once.

    Args:
        ends: Of each mask, ascending, the last one being the number of pixels.
        size: Rows and columns.
    """
    if not ends:
        return []
    row = np.repeat(np.arange(len(ends)), [len(one) for one in ends])
    return _strings(row, np.concatenate(ends), len(ends), checked_size(size))


def moved(ends: Int64, size: tuple[int, int], at: tuple[int, int], into: tuple[int, int]) -> Int64:
    """The runs of a mask that is a window of a larger one, in that one: where they end, as of `runs`.

    Args:
        ends: Of the window's mask.
        size: Rows and columns of the window.
        at: Row and column at which it begins.
        into: Rows and columns of the larger mask, which holds all of the window.
    """
    height, pixels = size[0], into[0] * into[1]
    start, stop = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    # A run that goes on in the next column of the window is another run in the larger mask, in each column.
    pieces = (stop - 1) // height - start // height + 1
    number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    column = np.repeat(start // height, pieces) + number
    start = np.maximum(np.repeat(start, pieces), column * height)
    stop = np.minimum(np.repeat(stop, pieces), (column + 1) * height)
    offset = (column + at[1]) * into[0] + at[0] - column * height
    found = np.stack([start + offset, stop + offset], 1).ravel()
    if len(found):  # where the window is as high as the larger mask they are one again
        same = np.flatnonzero(found[1:-1:2] == found[2::2])
        found = np.delete(found, np.concatenate([2 * same + 1, 2 * same + 2]))
    return found if len(found) and found[-1] == pixels else np.append(found, pixels)


def intersections(some: Sequence[Rle], others: Sequence[Rle]) -> Int64:
    """Pixels that masks share, of each with each: (A,) and (B,) to (A, B); all of one size.

    Raises:
        ValueError: A string is not sound, or they are of several sizes.
    """
    found = np.zeros((len(some), len(others)), np.int64)
    if not found.size:
        return found
    _one_size([*some, *others])
    ends = [runs(mask) for mask in some]
    num = [len(one) // 2 for one in ends]
    start = np.concatenate([one[: 2 * n : 2] for one, n in zip(ends, num, strict=True)])
    stop = np.concatenate([one[1::2] for one in ends])
    owner = np.repeat(np.arange(len(some)), num)
    for k, other in enumerate(others):
        at = np.concatenate([[0], runs(other)])
        length = np.diff(at)
        length[::2] = 0
        before = np.concatenate([[0], np.cumsum(length)])  # pixels of the other mask before each of its runs' ends
        shared = np.interp(stop, at, before) - np.interp(start, at, before)
        found[:, k] = np.rint(np.bincount(owner, shared, len(some)))
    return found


def runs(rle: Rle) -> Int64:
    """Where each run ends, (number of runs,) int64 in column-major pixels, read-only, from a string now proved sound.

    Runs alternate and begin outside the mask: pixels `runs[0]` up to, not including, `runs[1]` are the first inside.

    Raises:
        ValueError: One line that says what is wrong with the string.
    """
    if not isinstance(rle.counts, str):  # what cannot be hashed is not even asked after
        raise Damaged("rle", f"RLE counts are {type(rle.counts).__name__}, not a string")
    return ends(checked_size(rle.size), rle.counts)


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
    (found,) = sketch([rle], size, window)
    grid = np.zeros(size, np.bool_)
    found.draw(grid.view(np.uint8))
    return grid


def sketch(masks: Sequence[Rle], size: tuple[int, int], window: tuple[slice, slice] | None = None) -> list[Strokes]:
    """Masks of one size sampled on another grid, ready to be drawn; all of their strings are read at once.

    Args:
        masks: Of any one size.
        size: (h, w) of the grid.
        window: Rows and columns of the masks that the grid shows, not empty; all of them if not given.

    Raises:
        ValueError: A string is not sound, they are of several sizes, or the grid is empty.
    """
    if min(size) < 1:
        raise ValueError(f"a mask cannot be drawn on a grid of {size[0]}x{size[1]}")
    if not masks:
        return []
    own = _one_size(masks)
    return strokes(own, [mask.counts for mask in masks], size, window)


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
    x0, y0, x1, y1 = boxes([rle])[0].tolist()
    return x0, y0, x1, y1


def boxes(masks: Sequence[Rle]) -> Int64:
    """The boxes around masks of one size, (K, 4), as of `box`; all of their strings are read at once.

    Raises:
        ValueError: A string is not sound, or they are of several sizes.
    """
    if not masks:
        return np.zeros((0, 4), np.int64)
    size = _one_size(masks)
    start, stop, num = insides(size, [mask.counts for mask in masks])
    owner = np.repeat(np.arange(len(num)), num)
    some = np.flatnonzero(stop > start)
    owner, start, stop = owner[some], start[some], stop[some]
    height = size[0]
    left, right = start // height, (stop - 1) // height
    on = left != right  # a run goes on in the next column: it has that one's first row and this one's last
    top, bottom = np.where(on, 0, start - left * height), np.where(on, height, stop - right * height)
    found = np.zeros((len(num), 4), np.int64)
    which, begin = np.unique(owner, return_index=True)
    if len(which):
        corners = (np.minimum, left), (np.minimum, top), (np.maximum, right + 1), (np.maximum, bottom)
        for corner, (extreme, values) in enumerate(corners):
            found[which, corner] = extreme.reduceat(values, begin)
    return found


def _one_size(masks: Sequence[Rle]) -> tuple[int, int]:
    size = masks[0].size
    if any(mask.size != size for mask in masks):
        raise ValueError("masks of one image are of several sizes")
    return checked_size(size)


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
    for group in range(1, GROUPS):
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
