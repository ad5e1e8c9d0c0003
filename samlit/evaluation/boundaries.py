"""Edge maps against boundaries that people drew: the benchmark of BSDS500, written anew (SAM_SPEC 6.1, 6.2).

Arbelaez et al., PAMI 2011. Edge pixels and drawn pixels are matched one to one at the least total distance, as there;
the released matching leaves the choice of what stays unmatched partly to chance, so that its own numbers differ by
1e-4 from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

__all__ = ["Counts", "Summary", "counts", "curve", "match", "nms", "summary", "thin"]

Map = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
RADIUS = 0.0075
"""How far apart matched pixels may be, as a share of the image's diagonal."""
UNMATCHED = 100.0
"""What a pixel costs that is not matched, in such distances."""


class Counts(NamedTuple):
    """Pixels of one image at each of T thresholds, (T,) int64.

    Attributes:
        matched: Drawn pixels that are matched, over all annotators,
        drawn: of so many.
        right: Edge pixels that are matched with any annotator's,
        found: of so many.
    """

    matched: npt.NDArray[np.int64]
    drawn: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    found: npt.NDArray[np.int64]


class Summary(NamedTuple):
    """What the benchmark says of all images.

    Attributes:
        ods: F at the one best threshold of all images,
        ods_recall: and recall,
        ods_precision: and precision there.
        ois: F with each image's own best threshold,
        ois_recall: and recall,
        ois_precision: and precision there.
        ap: Area under the curve of precision by recall, by the benchmark's sum over 101 places.
        r50: Recall at a precision of one half.
    """

    ods: float
    ods_recall: float
    ods_precision: float
    ois: float
    ois_recall: float
    ois_precision: float
    ap: float
    r50: float


def thin(mask: Mask) -> Mask:
    """Lines of one pixel's width, connected as the mask was: MATLAB's `thin`, by Guo and Hall (1989), to its end.

    Args:
        mask: (H, W) bool.
    """
    now = np.pad(mask, 1)
    while True:
        before = now.sum()
        for table in _TABLES:
            code = np.zeros(mask.shape, np.uint8)
            for bit, (y, x) in enumerate(_AROUND):
                code |= now[1 + y : now.shape[0] - 1 + y, 1 + x : now.shape[1] - 1 + x].astype(np.uint8) << bit
            now[1:-1, 1:-1] &= ~table[code]
        if now.sum() == before:
            return np.asarray(now[1:-1, 1:-1])


_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""East, then counter-clockwise."""


def _tables() -> tuple[Mask, Mask]:
    """For each of 256 neighbourhoods, whether the pixel goes, in the first and in the second half of a round."""
    x = (np.arange(256)[:, None] >> np.arange(8)) & 1 > 0
    after = np.roll(x, -1, 1)  # the next one, counter-clockwise
    crossings = sum(~x[:, i] & (after[:, i] | np.roll(x, -2, 1)[:, i]) for i in (0, 2, 4, 6))
    pairs = sum((x[:, i] | after[:, i]).astype(int) for i in (0, 2, 4, 6))
    others = sum((after[:, i] | np.roll(x, -2, 1)[:, i]).astype(int) for i in (0, 2, 4, 6))
    least = np.minimum(pairs, others)
    simple = (crossings == 1) & (least >= 2) & (least <= 3)
    first = simple & ~((x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0])
    second = simple & ~((x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4])
    return first, second


_TABLES = _tables()


def match(found: Mask, drawn: Mask, radius: float) -> tuple[Mask, Mask]:
    """Pixels of two maps matched one to one, as many as the benchmark would, at the least total distance.

    Args:
        found: (H, W) bool.
        drawn: (H, W) bool.
        radius: How far apart two matched pixels may be.

    Returns:
        Which pixels of each are matched, (H, W) bool twice.
    """
    if drawn.sum() < found.sum():  # the solver takes its time by rows
        other, one = match(drawn, found, radius)
        return one, other
    one, other = np.zeros_like(found), np.zeros_like(drawn)
    places, targets = np.argwhere(found), np.argwhere(drawn)
    if not len(places) or not len(targets):
        return one, other
    # Every pixel's neighbours within the radius, by number; -1 where there is none.
    around = int(radius)
    numbers = np.full((drawn.shape[0] + 2 * around, drawn.shape[1] + 2 * around), -1)
    numbers[tuple(targets.T + around)] = np.arange(len(targets))
    reach = range(-around, around + 1)
    steps = np.array([(y, x) for y in reach for x in reach])
    far = np.hypot(*steps.T)
    steps, far = steps[far <= radius], far[far <= radius]
    near = numbers[tuple((places[:, None] + steps + around).transpose(2, 0, 1))]
    row, step = np.nonzero(near >= 0)
    column, distance = near[row, step], far[step]
    # Pixels near nobody are not matched, whatever the others do.
    rows, row = np.unique(row, return_inverse=True)
    columns, column = np.unique(column, return_inverse=True)
    n, m = len(rows), len(columns)
    if not n:
        return one, other
    # The benchmark lets each unmatched pixel of both maps cost something. A pair that is matched saves both, so that it
    # is the same to let only those of the first map cost twice as much: each has an outlier of its own. Weights are one
    # larger, for the solver takes a zero for no edge; all matchings of all rows have the same number of edges.
    alone = np.full(n, 2 * UNMATCHED * radius)
    weight = np.concatenate([distance, alone]) + 1
    place = np.concatenate([row, np.arange(n)]), np.concatenate([column, m + np.arange(n)])
    left, right = min_weight_full_bipartite_matching(coo_array((weight, place), shape=(n, n + m)).tocsr())
    real = right < m
    one[tuple(places[rows[left[real]]].T)] = True
    other[tuple(targets[columns[right[real]]].T)] = True
    return one, other


def counts(edges: Map, drawn: Sequence[Mask], thresholds: Sequence[float] | Float) -> Counts:
    """One image at each threshold.

    Args:
        edges: (H, W), from 0 to 1.
        drawn: Boundaries by each annotator, (H, W) bool.
        thresholds: A pixel is an edge from a threshold on.
    """
    radius = RADIUS * float(np.hypot(*edges.shape))
    table = np.zeros((len(thresholds), 4), np.int64)
    for t, least in enumerate(thresholds):
        found = thin(edges >= max(least, np.finfo(float).eps))
        right = np.zeros_like(found)
        for mask in drawn:
            of_found, of_drawn = match(found, mask, radius)
            right |= of_found
            table[t, 0] += of_drawn.sum()
            table[t, 1] += mask.sum()
        table[t, 2:] = right.sum(), found.sum()
    return Counts(*table.T)


def curve(total: Counts) -> tuple[Float, Float]:
    """Recall and precision by threshold, (T,) each; 0 where there is nothing."""
    recall = total.matched / np.maximum(total.drawn, 1)
    precision = total.right / np.maximum(total.found, 1)
    return recall, precision


def _f(recall: Float, precision: Float) -> Float:
    return np.asarray(2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny))


def summary(images: Sequence[Counts]) -> Summary:
    """What all images say together; zeros if there are none."""
    if not images:
        return Summary(*[0.0] * 8)
    total = Counts(*(np.sum([getattr(one, name) for one in images], 0) for name in Counts._fields))
    recall, precision = curve(total)
    ods, ods_recall, ods_precision = _best(recall, precision)
    best = [int(_f(*curve(one)).argmax()) for one in images]
    own = Counts(
        *(
            np.array([sum(getattr(one, name)[t] for one, t in zip(images, best, strict=True))])
            for name in Counts._fields
        )
    )
    ois_recall, ois_precision = (float(x[0]) for x in curve(own))
    ois = float(_f(*curve(own))[0])
    # Of equal recalls the first, as the benchmark's sorted unique ones.
    order, first = np.unique(recall, return_index=True)
    ap = 0.0
    if len(order) > 1:
        at = np.arange(101) / 100
        ap = float(np.interp(at, order, precision[first])[(at >= order[0]) & (at <= order[-1])].sum() / 100)
    rising, first = np.unique(precision, return_index=True)
    r50 = 0.0
    if len(rising) > 1:
        r50 = float(np.interp(max(0.5, rising[0]), rising, recall[first]))
    return Summary(ods, ods_recall, ods_precision, ois, ois_recall, ois_precision, ap, r50)


def _best(recall: Float, precision: Float) -> tuple[float, float, float]:
    """The highest F between neighbouring thresholds, with its recall and precision."""
    share = np.linspace(0, 1, 101)[:, None]
    r, p = (share * x[1:] + (1 - share) * x[:-1] if len(x) > 1 else x[None] for x in (recall, precision))
    f = _f(r, p)
    k = int(f.argmax())
    return float(f.ravel()[k]), float(np.ravel(r)[k]), float(np.ravel(p)[k])


def nms(edges: Map, radius: int = 1, margin: float = 1.01, smooth: int = 4, border: int = 5) -> Map:
    """Edges where they are no less than their neighbours across them; the others are 0 (SAM_SPEC 6.2).

    The direction is that of the second derivatives of the smoothed map.

    Args:
        edges: (H, W), 0 or more.
        radius: Neighbours on both sides, pixels.
        margin: What an edge is multiplied with before it is compared; above 1, broad edges stay.
        smooth: Radius of the triangle filter before the direction is taken; 0 for none.
        border: Pixels at the image's border over which edges fade.
    """
    values = edges.astype(np.float64)
    smoothed = _triangle(values, smooth) if smooth else values
    dy, dx = np.gradient(smoothed)
    dyy, dxy = np.gradient(dy)[0], np.gradient(dx)[0]
    dxx = np.gradient(dx)[1]
    # The released code takes the sign of 0 as 0: an edge that is exactly horizontal would be compared along itself.
    direction = np.mod(np.arctan(dyy * np.where(dxy > 0, -1, 1) / (dxx + 1e-5)), np.pi)
    y, x = np.mgrid[: edges.shape[0], : edges.shape[1]].astype(np.float32)
    across = np.cos(direction), np.sin(direction)
    keep = np.ones(edges.shape, np.bool_)
    for step in [*range(-radius, 0), *range(1, radius + 1)]:
        at_x, at_y = (x + step * across[0]).astype(np.float32), (y + step * across[1]).astype(np.float32)
        near = cv2.remap(values, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        keep &= values * margin >= near
    found = np.where(keep, values, 0.0)
    for i in range(min(border, min(edges.shape) // 2)):
        for side in (found[i], found[-1 - i], found[:, i], found[:, -1 - i]):
            side *= i / border
    return found


def _triangle(values: Float, radius: int) -> Float:
    """Smoothed by a triangle of that radius in both directions, mirrored at the border."""
    kernel = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]).astype(np.float64)
    kernel /= kernel.sum()
    return np.asarray(cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REFLECT))
