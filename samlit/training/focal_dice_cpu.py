"""`focal_dice` on a processor: one pass over the pixels, compiled by numba, that writes no full-size map but masks.

A frame's row is interpolated, compared and its slopes are gone back with while it is in the innermost cache, so a pixel
costs arithmetic and not memory. Dice's slope needs sums over the whole mask, but only as two factors, one inside the
true mask and one outside: what they multiply is gathered apart.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samlit.jitted import jitted

__all__ = ["compare"]

Float32 = npt.NDArray[np.float32]
f32 = np.float32
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)
LOG2_E = f32(1.4426950408889634)
LN_2, LN_2_REST = f32(0.693359375), f32(-2.12194440e-4)
"""ln 2 as a number that products with small integers are exact with, and what is left of it."""
NO_EXP = f32(87)
"""exp(-87) is about the least normal float32."""
NO_NANS_LOST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums in any order, so that they are taken many at a time; a NaN stays one."""


def compare(
    logits: Tensor, truth: Tensor, alpha: float, hard: Tensor, learns: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Focal loss with an exponent of 2, dice loss, IoU, and the slopes of the first two where wanted.

    Args:
        logits: (P, M, h, w) float32, h and w not above H and W.
        truth: (P, H, W) bool.
        alpha: Weight of pixels inside the mask.
        hard: (P, M, H, W) bool, filled with the masks.
        learns: Whether slopes are wanted, (P, M, h, w) float32 each, else there are none.
    """
    p, m, h, w = logits.shape
    rows, columns = truth.shape[-2:]
    low = np.ascontiguousarray(logits.detach().numpy()).reshape(p * m, h, w)
    true, drawn = np.ascontiguousarray(truth.numpy()).view(np.uint8), hard.numpy().reshape(p * m, rows, columns)
    sums = np.empty((p * m, 6))
    slopes = np.zeros((p * m if learns else 0, 3, h, w), np.float32)
    across, down = _axis(w, columns), _axis(h, rows)
    hands = min(torch.get_num_threads(), p * m)

    def some(first: int, last: int) -> None:
        _compare(low, true, m, *across, *down, f32(alpha), learns, first, last, drawn, sums, slopes)

    if hands == 1:
        some(0, p * m)
    else:
        bounds = [p * m * k // hands for k in range(hands + 1)]
        with ThreadPoolExecutor(hands) as pool:
            list(pool.map(some, bounds, bounds[1:]))
    focal, missed, missed_inside, both, drawn_area, true_area = (x.view(p, m) for x in torch.from_numpy(sums).unbind(1))
    focal = focal / (rows * columns)
    either = drawn_area + true_area - both
    iou = torch.where(either > 0, both / either.clamp_min(1), 1.0)
    twice = 2 * (true_area - missed_inside) + 1  # twice the intersection
    whole = missed - 2 * missed_inside + 2 * true_area + 1  # of the prediction and the truth
    found: list[Tensor] = []
    if learns:
        by_focal, inside, outside = torch.from_numpy(slopes).view(p, m, 3, h, w).unbind(2)
        outer = (twice / whole**2).float()[..., None, None]
        inner = (2 / whole).float()[..., None, None] - outer
        found = [by_focal / (rows * columns), torch.addcmul(outside * outer, inside, inner)]
    return focal.float(), (1 - twice / whole).float(), iou.float(), found


@lru_cache(64)
def _axis(few: int, many: int) -> tuple[npt.NDArray[np.int32], Float32]:
    """Which value of few each of many lies behind, and how far from it towards the next one; rounded as by torch."""
    at = np.maximum((np.arange(many, dtype=np.float32) + HALF) * f32(few / many) - HALF, 0).astype(np.float32)
    first = np.minimum(at.astype(np.int32), few - 1).astype(np.int32)
    return first, (at - first).astype(np.float32)


@jitted(fastmath=NO_NANS_LOST)
def _compare(
    low: Float32,
    truth: npt.NDArray[np.uint8],
    times: int,
    first_x: npt.NDArray[np.int32],
    share_x: Float32,
    first_y: npt.NDArray[np.int32],
    share_y: Float32,
    alpha: np.float32,
    learns: bool,
    begin: int,
    end: int,
    hard: npt.NDArray[np.bool_],
    sums: npt.NDArray[np.float64],
    slopes: Float32,
) -> None:
    """Masks from begin to end of (n, h, w) logits, with the truth that each `times` of them share.

    Writes hard (n, H, W), sums (n, 6) of the focal loss, the missed probability, that inside the truth, and the pixels
    of both, the mask and the truth; slopes (n, 3, h, w) of the focal sum and of the probability inside and outside.
    """
    h = low.shape[1]
    rows, columns = truth.shape[1:]
    upper, lower = np.empty(columns, np.float32), np.empty(columns, np.float32)
    z, t = np.empty(columns, np.float32), np.empty(columns, np.float32)
    bits = np.empty(columns, np.int32)
    power = bits.view(np.float32)
    up, down = np.zeros((3, columns), np.float32), np.zeros((3, columns), np.float32)
    for n in range(begin, end):
        at = -1
        sums[n] = 0
        for y in range(rows):
            if first_y[y] != at:  # the next pair of rows of logits
                if at >= 0 and learns:
                    _gather(up, first_x, share_x, slopes[n, :, at])
                    up, down = down, up
                    if first_y[y] != at + 1:
                        _gather(up, first_x, share_x, slopes[n, :, min(at + 1, h - 1)])
                if at >= 0 and first_y[y] == at + 1:
                    upper, lower = lower, upper
                else:
                    _widen(low[n, first_y[y]], first_x, share_x, upper)
                at = first_y[y]
                _widen(low[n, min(at + 1, h - 1)], first_x, share_x, lower)
            below = share_y[y]
            above = ONE - below
            for x in range(columns):
                z[x] = above * upper[x] + below * lower[x]
                # t = exp(-|z|) as 2^k times a polynomial (Cephes), whose 2^k is made of bits.
                a = min(abs(z[x]), NO_EXP)
                k = np.floor(HALF - a * LOG2_E)
                r = -a - k * LN_2 - k * LN_2_REST
                s = f32(1.9875691500e-4)
                s = s * r + f32(1.3981999507e-3)
                s = s * r + f32(8.3334519073e-3)
                s = s * r + f32(4.1665795894e-2)
                s = s * r + f32(1.6666665459e-1)
                s = s * r + f32(5.0000001201e-1)
                t[x] = s * r * r + r + ONE
                bits[x] = (np.int32(k) + np.int32(127)) << np.int32(23)
            # Counts are floats here, exact in a row, for then all of a row is one kind of number.
            row_focal, row_missed, row_inside, row_both, row_drawn, row_true = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            row_hard, row_truth = hard[n, y], truth[n // times, y]  # plain rows, else it is not many at a time
            up_focal, up_inside, up_outside = up[0], up[1], up[2]
            down_focal, down_inside, down_outside = down[0], down[1], down[2]
            for x in range(columns):
                row_hard[x] = z[x] > ZERO
            for x in range(columns):
                inside = f32(row_truth[x])
                sign = ONE - TWO * inside
                v = z[x] * sign
                e = t[x] * power[x]
                share = ONE / ((ONE + e) * (TWO + e))  # one division for both
                near = share * (TWO + e)  # 1 / (1 + t)
                far = e * near
                # log(1 + t) = 2 atanh(t / (2 + t)), whose argument is a third at most
                q = e * (share * (ONE + e))
                s = q * q
                series = f32(2 / 11)
                series = series * s + f32(2 / 9)
                series = series * s + f32(2 / 7)
                series = series * s + f32(2 / 5)
                series = series * s + f32(2 / 3)
                entropy = max(v, ZERO) + (series * s * q + TWO * q)
                miss = near if v >= ZERO else far
                rest = far if v >= ZERO else near
                lever = (ONE - alpha + (TWO * alpha - ONE) * inside) * miss * miss
                positive = ONE if z[x] > ZERO else ZERO
                row_focal += lever * entropy
                row_missed += miss
                row_inside += miss * inside
                row_both += positive * inside
                row_drawn += positive
                row_true += inside
                if learns:
                    by_focal = lever * (miss + TWO * rest * entropy) * sign
                    by_miss = miss * rest * sign
                    by_inside = by_miss * inside
                    by_outside = by_miss - by_inside
                    up_focal[x] += above * by_focal
                    up_inside[x] += above * by_inside
                    up_outside[x] += above * by_outside
                    down_focal[x] += below * by_focal
                    down_inside[x] += below * by_inside
                    down_outside[x] += below * by_outside
            sums[n, 0] += row_focal
            sums[n, 1] += row_missed
            sums[n, 2] += row_inside
            sums[n, 3] += row_both
            sums[n, 4] += row_drawn
            sums[n, 5] += row_true
        if learns:
            _gather(up, first_x, share_x, slopes[n, :, at])
            _gather(down, first_x, share_x, slopes[n, :, min(at + 1, h - 1)])


@jitted(fastmath=NO_NANS_LOST)
def _widen(low: Float32, first: npt.NDArray[np.int32], share: Float32, wide: Float32) -> None:
    """A row of logits at the frame's columns."""
    for x in range(wide.size):
        i = first[x]
        wide[x] = low[i] + share[x] * (low[min(i + 1, low.size - 1)] - low[i])


@jitted(fastmath=NO_NANS_LOST)
def _gather(wide: Float32, first: npt.NDArray[np.int32], share: Float32, low: Float32) -> None:
    """Add slopes of a row, (3, columns), to those of the logits that it is made of, (3, w), and begin anew."""
    w = low.shape[1]
    for k in range(3):
        at, own, further = first[0], ZERO, ZERO
        for x in range(wide.shape[1]):
            if first[x] != at:
                low[k, at] += own
                if first[x] == at + 1:
                    own, further = further, ZERO
                else:
                    low[k, min(at + 1, w - 1)] += further
                    own, further = ZERO, ZERO
                at = first[x]
            further += share[x] * wide[k, x]
            own += (ONE - share[x]) * wide[k, x]
            wide[k, x] = ZERO
        low[k, at] += own
        low[k, min(at + 1, w - 1)] += further
